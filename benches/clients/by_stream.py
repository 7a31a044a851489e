"""Takes every tensor of a model in order, reads each page of it, and keeps none: by_stream.py SOURCE PUBLISHED [RING]

With RING, such as 256MiB, they come through a ring of that size; else from memory that stays.
"""

import clients
import weightd


def load():
    options = {"stream": clients.HOW} if clients.HOW else {}
    with weightd.open(clients.SOURCE, **options) as model:
        assert model.how == ("stream" if clients.HOW else "shared memory"), model.why
        for name in model.offset_keys():
            yield name, model[name].torch()


clients.serve(load, is_kept=False)
