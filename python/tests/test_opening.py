"""What `weightd.open` finds, and what it refuses."""

import json
import os
import pathlib
import random
import struct

import models
import weightd

ONE = {"a": ("F32", (2, 3)), "b": ("BF16", (4,))}
TWO = {"c": ("I64", ()), "d": ("F16", (0, 5))}


class Opening(models.WithDirectory):
    def index(self, weight_map, name="model.safetensors.index.json"):
        with open(self.at(name), "w") as file:
            json.dump({"metadata": {}, "weight_map": weight_map}, file)

    def test_a_file_is_a_mapping_of_names(self):
        path = models.write(self.at("x.safetensors"), {**TWO, **ONE}, {"format": "pt"})
        with weightd.open(path) as tensors:
            self.assertEqual(tensors.how, "mapped files")
            self.assertEqual(len(tensors), 4)
            self.assertEqual(tensors.keys(), ["a", "b", "c", "d"])
            self.assertEqual(list(tensors), tensors.keys())
            self.assertEqual([tensor.name for tensor in tensors.values()], tensors.keys())
            self.assertEqual([name for name, _ in tensors.items()], tensors.keys())
            self.assertEqual(tensors.metadata(), {"format": "pt"})
            self.assertEqual(tensors.files, [pathlib.Path(path)])
            self.assertIn("a", tensors)
            self.assertNotIn("e", tensors)
            self.assertNotIn(7, tensors)
            tensor = tensors["a"]
            self.assertEqual((tensor.name, tensor.dtype, tensor.shape, tensor.nbytes), ("a", "F32", (2, 3), 24))
            self.assertEqual(tensor.file, pathlib.Path(path))
            self.assertEqual(tensors["c"].shape, ())
            self.assertEqual(repr(tensor), 'Tensor(name="a", dtype="F32", shape=[2, 3])')
            self.refuses(KeyError, [path, '"e"'], tensors.__getitem__, "e")

    def test_a_directory_without_an_index_is_all_its_files(self):
        models.write(self.at("1.safetensors"), ONE, {"format": "pt", "part": "1"})
        models.write(self.at("2.safetensors"), TWO, {"format": "pt", "part": "2"})
        models.write(self.at("notes.txt"), {"z": ("U8", (1,))})
        tensors = weightd.open(pathlib.Path(self.directory))
        self.assertEqual(tensors.keys(), ["a", "b", "c", "d"])
        # They disagree about the part.
        self.assertEqual(tensors.metadata(), {"format": "pt"})
        self.assertEqual(tensors["c"].file.name, "2.safetensors")

    def test_an_index_says_which_files_are_the_model(self):
        os.mkdir(self.at("deep"))
        models.write(self.at("1.safetensors"), ONE)
        models.write(self.at("deep/2.safetensors"), TWO)
        # The same tensors once more, as some publishers add them.
        models.write(self.at("consolidated.safetensors"), ONE)
        self.index({"a": "1.safetensors", "b": "1.safetensors", "c": "deep/2.safetensors"})
        self.assertEqual(weightd.open(self.directory).keys(), ["a", "b", "c", "d"])

    def test_the_model_has_each_tensor_once(self):
        paths = [models.write(self.at(f"{number}.safetensors"), ONE) for number in (1, 2)]
        self.refuses(weightd.InvalidFile, ['"a"', *paths], weightd.open, self.directory)

    def test_an_index_that_its_files_do_not_keep_is_refused(self):
        models.write(self.at("1.safetensors"), ONE)
        path = self.at("model.safetensors.index.json")
        for weight_map, words in [
            ({"a": "gone.safetensors"}, ["gone.safetensors", "missing"]),
            ({"z": "1.safetensors"}, ["1.safetensors", '"z"']),
            ({"a": "../1.safetensors"}, ["../1.safetensors"]),
            ({"a": "/1.safetensors"}, ["/1.safetensors"]),
            ({"a": ""}, []),
            ({"a": 1}, []),
        ]:
            self.index(weight_map)
            self.refuses(weightd.InvalidFile, [path, *words], weightd.open, self.directory)
        self.index({})
        self.refuses(weightd.NotFound, [self.directory], weightd.open, self.directory)

    def test_two_indices_are_two_models(self):
        models.write(self.at("1.safetensors"), ONE)
        names = ["unet.safetensors.index.json", "vae.safetensors.index.json"]
        for name in names:
            self.index({"a": "1.safetensors"}, name)
        self.refuses(weightd.InvalidFile, names, weightd.open, self.directory)
        self.index({"a": "1.safetensors"})
        self.assertEqual(len(weightd.open(self.directory)), 2)

    def test_what_is_not_there_is_named(self):
        self.refuses(FileNotFoundError, [self.at("x")], weightd.open, self.at("x"))
        self.refuses(FileNotFoundError, [self.directory, ".safetensors"], weightd.open, self.directory)
        os.mkfifo(self.at("x.safetensors"))
        self.refuses(OSError, [self.at("x.safetensors")], weightd.open, self.at("x.safetensors"))
        self.refuses(OSError, [self.at("x.safetensors")], weightd.open, self.directory)
        os.mkfifo(self.at("model.safetensors.index.json"))
        self.refuses(OSError, [self.at("model.safetensors.index.json")], weightd.open, self.directory)

    def test_what_is_closed_says_so_and_tensors_live_on(self):
        path = models.write(self.at("x.safetensors"), ONE)
        with weightd.open(path) as tensors:
            tensor = tensors["a"]
        for call in (tensors.keys, tensors.offset_keys, tensors.metadata, tensors.__len__, lambda: tensors["a"]):
            self.refuses(weightd.Closed, [path, "closed"], call)
        self.assertIn("closed", repr(tensors))
        self.assertEqual(tensor.numpy().tobytes(), models.content("F32", (2, 3)))

    def test_an_empty_file_of_tensors_is_a_model_without_any(self):
        self.assertEqual(weightd.open(models.write(self.at("x.safetensors"), {})).keys(), [])


class Damaged(models.WithDirectory):
    def given(self, data):
        path = self.at("x.safetensors")
        with open(path, "wb") as file:
            file.write(data)
        return path

    def test_a_file_cut_short_anywhere_is_refused_by_name(self):
        with open(models.write(self.at("whole"), ONE), "rb") as file:
            whole = file.read()
        for length in range(len(whole)):
            path = self.given(whole[:length])
            self.refuses(weightd.InvalidFile, [path], weightd.open, path)
        path = self.given(whole + b"x")
        self.refuses(weightd.InvalidFile, [path, "longer"], weightd.open, path)

    def test_a_header_with_any_bit_flipped_is_refused_or_read(self):
        with open(models.write(self.at("whole"), ONE), "rb") as file:
            whole = bytearray(file.read())
        refused = 0
        for bit in range(8 * (8 + struct.unpack("<Q", whole[:8])[0])):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            path = self.given(flipped)
            try:
                # Another name, say, is as good as this one.
                for tensor in weightd.open(path).values():
                    tensor.raw().numpy().tobytes()
            except weightd.InvalidFile as error:
                refused += 1
                self.assertIn(path, str(error))
                self.assertNotIn("\n", str(error))
        self.assertGreater(refused, 100)

    def test_random_bytes_are_refused(self):
        chance = random.Random(7)
        for length in range(200):
            data = struct.pack("<Q", chance.choice([length, 2, 1 << 63, 100_000_001])) + chance.randbytes(length)
            path = self.given(data)
            self.refuses(weightd.InvalidFile, [path], weightd.open, path)

    def test_headers_that_lie_are_refused(self):
        for entry in [
            {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
            {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
            {"dtype": "F32", "shape": [1 << 62, 8], "data_offsets": [0, 8]},
            {"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]},
            {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
            {"dtype": "F32", "shape": [2], "data_offsets": [0, 1 << 64]},
            {"dtype": "F4", "shape": [17], "data_offsets": [0, 8]},
            {"dtype": "X\n" * 5000, "shape": [2], "data_offsets": [0, 8]},
        ]:
            text = json.dumps({"weird\nname": entry}).encode()
            path = self.given(struct.pack("<Q", len(text)) + text + bytes(8))
            self.refuses(weightd.InvalidFile, [path], weightd.open, path)
            with self.assertRaises(weightd.WeightdError) as raised:
                weightd.open(path)
            self.assertLess(len(str(raised.exception)), 1100)
