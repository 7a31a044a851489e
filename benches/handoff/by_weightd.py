"""Borrows every tensor of a model from the agent: by_weightd.py SOURCE PUBLISHED [ordered]

With `ordered` each is taken as soon as it is there, in the order of the files; else all are waited for first.
"""

import clients
import weightd


def load():
    with weightd.open(clients.SOURCE) as model:
        assert model.how == "shared memory", model.why
        if clients.HOW != "ordered":
            model.wait()
        for name in model.offset_keys():
            yield name, model[name].torch()


clients.serve(load)
