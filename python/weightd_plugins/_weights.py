"""Where the weights of a model are, and how they are handed to a model server."""

from __future__ import annotations

import fnmatch
import inspect
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: The load format, as servers are told it.
NAME = "weightd"
# Names the place of the weights where that is not the path of the model.
_SOURCE = "source"
_EXTENSION = ".safetensors"
_INDEX_EXTENSION = ".safetensors.index.json"
# A load that takes minutes says how far it is.
_SECONDS_BETWEEN_REPORTS = 10
# What `weightd.open` takes and only a server can say: it cuts tensors itself, and knows which it needs.
_OWN = ("slices", "names")

# Which model's path each source stands for. Servers make a new loader to load weights once more and tell it nothing but
# the path by then: one that was changed meanwhile, or that is another model's, a draft's say, is meant as it is.
_stands_for: dict[str, str] = {}


class Options:
    """What a server was told to pass on, checked: a place for the weights, and what `weightd.open` takes."""

    def __init__(self, given: Any) -> None:
        if not isinstance(given, dict):
            raise ValueError(
                f"model_loader_extra_config of the load format {NAME} is a JSON object, not {type(given).__name__}: "
                f'write {{"{_SOURCE}": "/mnt/llama"}}'
            )
        known = [_SOURCE, *_options_of_open()]
        unknown = sorted(str(key) for key in given if key not in known)
        if unknown:
            raise ValueError(
                f"model_loader_extra_config of the load format {NAME} has no key {', '.join(map(repr, unknown))}: "
                f"it has {', '.join(known)}"
            )
        source = given.get(_SOURCE)
        if source is not None and (not isinstance(source, str) or not source):
            raise ValueError(
                f"model_loader_extra_config of the load format {NAME}: {_SOURCE} is the directory of the weights, "
                f"not {source!r}"
            )
        self.source: str | None = source
        self.open = {key: value for key, value in given.items() if key != _SOURCE}

    def is_for(self, model: str) -> None:
        """Lets the source, if there is one, stand for the path of the model that is served."""
        if self.source is not None:
            _stands_for[self.source] = model

    def place(self, model: str) -> str:
        """Where the weights are of the model that has this path."""
        is_elsewhere = self.source is not None and _stands_for.get(self.source) == model
        return self.source if is_elsewhere else model


def _options_of_open() -> list[str]:
    import weightd

    return [name for name in list(inspect.signature(weightd.open).parameters)[1:] if name not in _OWN]


def places(place: str, patterns: list[str] | None = None, consolidated: bool = False) -> list[str]:
    """What is to be opened of a model's directory: itself, unless the server wants certain files.

    `patterns` are the model's own, of which the first that fits counts. With `consolidated` files of that name are preferred
    where there are any; without, they are the same weights once more. Both are what vLLM's and SGLang's own loaders do.
    """
    if "://" in place or os.path.isfile(place):
        return [place]
    if not os.path.isdir(place):
        raise FileNotFoundError(
            f"{place} is no directory: mount the model (`weightctl mount URI DIRECTORY`) and serve that directory, or name "
            f'where its weights are by model_loader_extra_config={{"{_SOURCE}": "DIRECTORY"}}'
        )
    if patterns is not None:
        return _fitting(place, patterns)
    there = sorted(os.listdir(place))
    names = [name for name in there if name.endswith(_EXTENSION)]
    if not names and not any(name.endswith(_INDEX_EXTENSION) for name in there):
        raise FileNotFoundError(
            f"{place} holds no {_EXTENSION} file, and the load format {NAME} reads no other: load it with --load-format auto, "
            f'or name where its weights are by model_loader_extra_config={{"{_SOURCE}": "DIRECTORY"}}'
        )
    joined = [name for name in names if fnmatch.fnmatch(name, "consolidated*.safetensors")]
    if consolidated and joined:
        return _paths(place, _indexed(place, f"consolidated{_INDEX_EXTENSION}", joined))
    if joined and len(joined) < len(names) and f"model{_INDEX_EXTENSION}" not in there:
        return _paths(place, [name for name in names if name not in joined])
    return [place]


def _fitting(place, patterns):
    for pattern in patterns:
        files = sorted(str(path) for path in Path(place).glob(pattern))
        wrong = [file for file in files if not file.endswith(_EXTENSION)]
        if wrong:
            raise ValueError(
                f"{wrong[0]}: this model reads it, and the load format {NAME} reads {_EXTENSION} files only: "
                f"load it with --load-format auto"
            )
        if files:
            return files
    raise FileNotFoundError(f"{place} holds none of the files that this model reads: {', '.join(patterns)}")


def _indexed(place, index, names):
    """Those that an index of theirs names, if there is one."""
    path = os.path.join(place, index)
    if not os.path.isfile(path):
        return names
    try:
        with open(path, encoding="utf-8") as file:
            wanted = set(json.load(file)["weight_map"].values())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no index of weights: {error!r}") from None
    missing = sorted(wanted.difference(names))
    if missing:
        raise FileNotFoundError(f"{path} names {missing[0]}, which is missing: {place} is not a complete model")
    return [name for name in names if name in wanted]


def _paths(place, names):
    return [os.path.join(place, name) for name in names]


def weights(
    opened: list[str],
    options: dict[str, Any],
    is_wanted: Callable[[str], bool],
    say: Callable[..., None],
) -> Iterator[tuple[str, Any]]:
    """Names and torch tensors as they lie in their files, which is the order that a disk and a download have them in.

    Nothing of a tensor is read here, and one that is not wanted is not even asked for: whoever takes a part of one touches
    just that. A tensor may be written to and kept; its memory lives as long as it does, and so does its place in a ring.
    """
    if options.get("stream"):
        # What has gone through a ring cannot be compared any more.
        options = {"verified": True, **options}
    for place in opened:
        # Of its own, so that nothing of one place is held, and no ring, while the next one is opened.
        yield from _weights_of(place, options, is_wanted, say)


def _weights_of(place, options, is_wanted, say):
    import weightd

    there = []

    def is_asked_for(name):
        there.append(name)
        return is_wanted(name)

    with weightd.open(place, names=is_asked_for, **options) as tensors:
        wanted = [tensors[name] for name in tensors.offset_keys()]
        total = sum(tensor.nbytes for tensor in wanted)
        say(
            "weightd: %d of %d tensors, %.2f GB, of %s (%s)",
            *(len(wanted), len(there), total / 1e9, place, tensors.how),
        )
        done, reported = 0, time.monotonic()
        for tensor in wanted:
            yield tensor.name, tensor.torch()
            done += tensor.nbytes
            if time.monotonic() - reported >= _SECONDS_BETWEEN_REPORTS:
                reported = time.monotonic()
                say("weightd: %.2f of %.2f GB of %s", done / 1e9, total / 1e9, place)
        if tensors.how != "stream":
            # Some were used when they had come, before the origin's checksum was compared. No server shall serve what was wrong.
            tensors.wait([tensor.name for tensor in wanted], verified=True)
