"""Files of tensors, written by hand: of every type, also where no library has it, and wrong ones."""

import json
import os
import struct
import tempfile
import unittest

#: Every type of the format, and bits of an element.
BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
#: Types whose elements are whole bytes.
WHOLE = [dtype for dtype, bits in BITS.items() if bits >= 8]


def content(dtype, shape, seed=0):
    """Bytes of a tensor. Small numbers in every type, so that none is a NaN, which equals nothing."""
    count = BITS[dtype]
    for length in shape:
        count *= length
    if dtype == "BOOL":
        return bytes((at + seed) % 2 for at in range(count // 8))
    return bytes((7 * at + seed) % 61 for at in range(count // 8))


def header(tensors, metadata=None, pad=8):
    """Length and JSON for `{name: (dtype, shape)}`, padded to a multiple of `pad`."""
    entries, offset = {}, 0
    if metadata is not None:
        entries["__metadata__"] = metadata
    for name, (dtype, shape) in tensors.items():
        end = offset + len(content(dtype, shape))
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-(len(text) + 8) % pad)
    return struct.pack("<Q", len(text)) + text


def write(path, tensors, metadata=None, pad=8):
    """A file whose tensor data begins on a multiple of `pad`; each tensor's seed is its place in the file."""
    with open(path, "wb") as file:
        file.write(header(tensors, metadata, pad))
        for seed, (dtype, shape) in enumerate(tensors.values()):
            file.write(content(dtype, shape, seed))
    return path


def every_type(shape=(3, 4)):
    """A tensor of each type, the widest first, so that all lie on multiples of their elements."""
    order = sorted(BITS, key=lambda dtype: -BITS[dtype])
    return {f"layer.{dtype}": (dtype, shape) for dtype in order}


def is_mapped(path):
    """Whether this process has the file mapped."""
    with open("/proc/self/maps") as maps:
        return any(os.path.realpath(path) in line for line in maps)


def directory():
    """A directory for the length of a `with`."""
    return tempfile.TemporaryDirectory()


class WithDirectory(unittest.TestCase):
    """A test that has a directory of its own."""

    def setUp(self):
        made = directory()
        self.addCleanup(made.cleanup)
        self.directory = made.name

    def at(self, name):
        return os.path.join(self.directory, name)

    def refuses(self, kind, words, call, *arguments):
        """Whether a call raises, in one line that has all those words."""
        with self.assertRaises(kind) as raised:
            call(*arguments)
        message = str(raised.exception)
        self.assertNotIn("\n", message)
        for word in words:
            self.assertIn(word, message)
