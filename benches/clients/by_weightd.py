"""Borrows every tensor of a model from the agent: by_weightd.py SOURCE PUBLISHED [touched | ordered | RANK/RANKS]

With `ordered` each is taken as soon as it is there, in the order of the files, and with RANK/RANKS its part of them; else all are
waited for first. If it is told anything, it reads a byte of every page, as those do that copy.
"""

import clients
import weightd


def load():
    options = {}
    if clients.PART:
        names = (name for name, (entry, _) in clients.published() if clients.is_cut(entry["shape"]))
        options["slices"] = {name: (0, *clients.PART) for name in names}
    with weightd.open(clients.SOURCE, **options) as model:
        assert model.how == "shared memory", model.why
        if clients.HOW in (None, "", "touched"):
            model.wait()
        for name in model.offset_keys():
            tensor = model[name].torch()
            if clients.HOW:
                clients.touch(tensor)
            yield name, tensor


clients.serve(load)
