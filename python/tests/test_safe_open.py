"""`weightd.safe_open` beside `safetensors.safe_open`, on the same files: the variable FRAMEWORK says for which framework."""

import os

import models
import numpy
import safetensors
import weightd

FRAMEWORK = os.environ["FRAMEWORK"]
NAMES = {"numpy": ["np", "numpy"], "torch": ["pt", "torch"], "jax": ["jax", "flax"]}[FRAMEWORK]
#: Of a type that every framework has.
MODEL = {
    "w": ("F32", (4, 6, 5)),
    "a.h": ("F16", (7,)),
    "i": ("I32", (3, 3)),
    "s": ("F32", ()),
    "z": ("F32", (0, 3)),
    "b": ("BOOL", (9,)),
}
INDICES = [
    0,
    -1,
    3,
    True,
    numpy.int64(2),
    slice(None),
    slice(1, 3),
    slice(None, None, 2),
    slice(1, None, 3),
    ...,
    (),
    (slice(None), 2),
    (..., 0),
    (0, ..., 1),
    (1, slice(2, 4), slice(None, 3)),
    (1, 2, 3),
]
#: What safetensors itself stumbles over for numpy, and torch takes.
MORE = [slice(-2, None), slice(None, -1), (slice(None), slice(-2, None)), slice(3, 1), slice(9, 12), slice(0, 100)]
WRONG = [4, -5, (0, 0, 0, 0), "a", 1.5, (0, 6), slice(None, None, -1), slice("a"), slice(None, None, 0), (..., ...)]
#: Copies, which torch makes and the others do not.
LISTS = [[0, 1], None, (slice(None), [0, 2])]


def same(mine, theirs):
    mine_is, theirs_is = (numpy.asarray(array) for array in (mine, theirs))
    return (
        type(mine) is type(theirs)
        and str(mine.dtype) == str(theirs.dtype)
        and mine_is.shape == theirs_is.shape
        and mine_is.tobytes() == theirs_is.tobytes()
    )


class SafeOpen(models.WithDirectory):
    def setUp(self):
        super().setUp()
        self.path = models.write(self.at("x.safetensors"), MODEL, {"format": "pt", "x": "y"})

    def both(self, framework=NAMES[0]):
        return [package.safe_open(self.path, framework=framework) for package in (weightd, safetensors)]

    def test_everything_is_the_same(self):
        for framework in NAMES:
            with weightd.safe_open(self.path, framework) as mine, safetensors.safe_open(self.path, framework) as theirs:
                self.assertEqual(mine.keys(), list(theirs.keys()))
                self.assertEqual(mine.offset_keys(), theirs.offset_keys())
                self.assertEqual(mine.metadata(), theirs.metadata())
                for name in theirs.keys():
                    self.assertTrue(same(mine.get_tensor(name), theirs.get_tensor(name)), name)
                    part, its = mine.get_slice(name), theirs.get_slice(name)
                    self.assertEqual((part.get_shape(), part.get_dtype()), (its.get_shape(), its.get_dtype()))
                every, theirs_all = mine.get_tensors(), theirs.get_tensors()
                self.assertEqual(list(every), list(theirs_all))
                self.assertTrue(all(same(every[name], tensor) for name, tensor in theirs_all.items()))

    def test_the_interface_is_the_same(self):
        for mine, theirs in zip(self.both(), self.both()[::-1]):
            public = [{word for word in dir(each) if word[0] != "_"} for each in (mine, theirs)]
            self.assertEqual(*public)
            parts = [{word for word in dir(each.get_slice("w")) if word[0] != "_"} for each in (mine, theirs)]
            self.assertEqual(*parts)

    def test_metadata_may_be_missing(self):
        self.path = models.write(self.at("y.safetensors"), MODEL)
        self.assertEqual([each.metadata() for each in self.both()], [None, None])

    def test_parts_are_the_same(self):
        mine, theirs = (each.get_slice("w") for each in self.both())
        for index in INDICES + (MORE + LISTS[:2] if FRAMEWORK == "torch" else []):
            self.assertTrue(same(mine[index], theirs[index]), index)
        scalar, its = (each.get_slice("s") for each in self.both())
        for index in (..., ()):
            self.assertTrue(same(scalar[index], its[index]), index)

    def test_parts_are_views(self):
        if FRAMEWORK == "jax":
            # Its arrays have none.
            return
        file = weightd.safe_open(self.path, NAMES[0])
        address = {"numpy": lambda array: array.ctypes.data, "torch": lambda tensor: tensor.data_ptr()}[FRAMEWORK]
        whole, part = file.get_tensor("w"), file.get_slice("w")
        self.assertEqual(address(part[1]) - address(whole), 4 * 6 * 5)
        self.assertEqual(address(part[:, 2:3, 1]) - address(whole), 4 * (2 * 5 + 1))
        self.assertEqual(address(part[0, 0, 1]) - address(whole), 4)

    def test_parts_that_safetensors_does_not_cut_are_as_python_has_them(self):
        mine = weightd.safe_open(self.path, NAMES[0])
        whole = numpy.asarray(mine.get_tensor("w"))
        for index in MORE:
            self.assertTrue((numpy.asarray(mine.get_slice("w")[index]) == whole[index]).all(), index)
        self.assertEqual(tuple(mine.get_slice("z")[:].shape), (0, 3))

    def test_what_cannot_be_cut_is_refused_by_both(self):
        mine, theirs = (each.get_slice("w") for each in self.both())
        for index in WRONG + ([] if FRAMEWORK == "torch" else LISTS):
            if FRAMEWORK == "torch" and index == (..., ...):
                continue
            with self.assertRaises(Exception, msg=index):
                theirs[index]
            if FRAMEWORK == "torch":
                with self.assertRaises((IndexError, TypeError, ValueError), msg=index):
                    mine[index]
            else:
                self.refuses(weightd.InvalidIndex, [self.path, "'w'"], mine.__getitem__, index)

    def test_what_is_missing_is_refused_by_both(self):
        for file in self.both():
            for call in (file.get_tensor, file.get_slice):
                with self.assertRaises((weightd.SafetensorError, safetensors.SafetensorError)) as raised:
                    call("nope")
                self.assertIn("does not contain tensor", str(raised.exception))
                with self.assertRaises(TypeError):
                    call(3)
        for package in (weightd, safetensors):
            with self.assertRaises(FileNotFoundError):
                package.safe_open(self.at("nope"), NAMES[0])
            with self.assertRaises(TypeError):
                package.safe_open(self.path)

    def test_frameworks_and_devices_that_are_none_are_refused_by_both(self):
        devices = ["bogus", "cpu:x"] + ([] if FRAMEWORK == "torch" else ["cuda", 0])
        for package in (weightd, safetensors):
            with self.assertRaises(package.SafetensorError):
                package.safe_open(self.path, "xx")
            for device in devices:
                with self.assertRaises((weightd.WeightdError, safetensors.SafetensorError, RuntimeError)) as raised:
                    package.safe_open(self.path, NAMES[0], device=device).get_tensor("w")
                if package is weightd:
                    self.assertIsInstance(raised.exception, weightd.Unsupported)
                    self.assertIn(str(device), str(raised.exception))

    def test_what_is_closed_is_refused_by_both_and_parts_live_on(self):
        for file in self.both():
            with file:
                part = file.get_slice("w")
            for call in (file.keys, file.metadata, file.offset_keys, lambda: file.get_tensor("w")):
                with self.assertRaises((weightd.SafetensorError, safetensors.SafetensorError)):
                    call()
            self.assertEqual(tuple(part[0].shape), (6, 5))

    def test_a_directory_is_one_file_of_all_tensors(self):
        models.write(self.at("y.safetensors"), {"other": ("F32", (2,))})
        with weightd.safe_open(self.directory, NAMES[0]) as file:
            self.assertEqual(file.keys(), sorted([*MODEL, "other"]))
            self.assertEqual(tuple(file.get_tensor("other").shape), (2,))
