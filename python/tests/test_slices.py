"""Parts of tensors, as the ranks of a model server need them: what they are is what torch's `narrow` says."""

import itertools
import os

import agent
import models
import torch
import weightd

SHAPE = (4, 6, 8)
#: Types that any torch has.
TYPES = [dtype for dtype in models.WHOLE if not dtype.startswith(("F8", "U")) or dtype == "U8"]


def as_bytes(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


class Slices(models.WithDirectory):
    """Of mapped files, and of an agent."""

    def setUp(self):
        super().setUp()
        self.model = {dtype: (dtype, SHAPE) for dtype in sorted(models.BITS, key=lambda dtype: -models.BITS[dtype])}
        self.path = models.write(self.at("x.safetensors"), self.model)

    def opened(self, slices):
        """The same slices of mapped files, and lent."""
        mapped = weightd.open(self.path, slices=slices)
        self.assertEqual(mapped.how, "mapped files")
        yield mapped
        told = {name: slices["*"] for name in self.model}
        lent = agent.Model({"x.safetensors": self.model}, slices=told).fill()
        asked = []

        def serve(client):
            client.hear_open()
            asked.append(client.more["slices"])
            client.lend(lent, True)
            client.until_it_ends()

        served = agent.Agent(self.at("x.sock"), serve)
        tensors = weightd.open(self.path, slices=slices, agent=self.at("x.sock"))
        self.assertEqual((tensors.how, asked), ("shared memory", [[("*", *slices["*"])]]))
        yield tensors
        served.close()
        self.assertEqual(served.problems, [])

    def test_they_are_what_torch_narrows_to_and_lie_in_the_same_memory(self):
        whole = weightd.open(self.path)
        for dimension, parts in [(0, 2), (0, 4), (1, 3), (2, 2), (1, 2), (1, 1)]:
            for part in range(parts):
                for tensors in self.opened({"*": (dimension, part, parts)}):
                    for name in TYPES:
                        tensor, own = tensors[name], SHAPE[dimension] // parts
                        right = whole[name].torch().narrow(dimension, part * own, own)
                        case = (name, dimension, part, parts, tensors.how)
                        self.assertEqual(tensor.shape, tuple(right.shape), case)
                        self.assertEqual(tensor.nbytes, right.numel() * right.element_size(), case)
                        cut = tensor.torch()
                        self.assertEqual((cut.stride(), as_bytes(cut)), (right.stride(), as_bytes(right)), case)
                        self.assertEqual(tensor.torch().data_ptr(), cut.data_ptr(), case)
                        array = tensor.__array_interface__
                        self.assertEqual(array["data"][0], cut.data_ptr(), case)
                        self.assertEqual(tensor.raw().numpy().tobytes(), as_bytes(right), case)

    def test_numpy_has_them_in_the_same_memory(self):
        import numpy

        for tensors in self.opened({"*": (2, 1, 2)}):
            for name in ("F32", "I16", "BOOL", "C64"):
                array = tensors[name].numpy()
                right = weightd.open(self.path)[name].numpy()[:, :, 4:]
                self.assertTrue(numpy.array_equal(array, right))
                self.assertEqual(array.strides, right.strides)
                for other in (numpy.asarray(tensors[name]), tensors[name].numpy()):
                    self.assertEqual(other.ctypes.data, array.ctypes.data)
                    self.assertEqual(other.tobytes(), right.tobytes())
                array[...] = 1
                self.assertTrue((tensors[name].numpy() == 1).all())

    def test_a_copy_is_a_contiguous_one(self):
        for tensors in self.opened({"*": (1, 1, 3)}):
            copy = torch.from_dlpack(tensors["F32"].__dlpack__(copy=True))
            self.assertTrue(copy.is_contiguous())
            self.assertTrue(torch.equal(copy, tensors["F32"].torch()))

    def test_elements_that_share_bytes_are_cut_where_bytes_end(self):
        for tensors in self.opened({"*": (2, 1, 2)}):
            for name in ("F4", "F6_E2M3"):
                bits, whole = models.BITS[name], models.content(*self.model[name], list(self.model).index(name))
                row, half = 8 * bits // 8, 4 * bits // 8
                right = b"".join(whole[at + half : at + row] for at in range(0, len(whole), row))
                self.assertEqual(tensors[name].raw().numpy().tobytes(), right)
        self.refuses(ValueError, [self.path, '"F4"', "bytes"], lambda: weightd.open(self.path, slices={"F4": (2, 1, 8)}))

    def test_the_first_pattern_that_fits_counts(self):
        tensors = weightd.open(self.path, slices={"F3*": None, "F*": (0, 1, 2)})
        self.assertEqual([tensors[name].shape for name in ("F32", "F64", "I32")], [SHAPE, (2, 6, 8), SHAPE])

    def test_a_tensor_without_bytes_has_slices_too(self):
        path = models.write(self.at("empty.safetensors"), {"none": ("F32", (0, 4)), "some": ("F32", (1, 4))})
        tensors = weightd.open(path, slices={"none": (1, 1, 2), "some": (1, 1, 2)})
        self.assertEqual(tuple(tensors["none"].torch().shape), (0, 2))
        self.assertEqual(tensors["some"].torch().tolist(), weightd.open(path)["some"].torch()[:, 2:].tolist())

    def test_what_does_not_begin_on_its_element_is_copied_whole(self):
        path = models.write(self.at("odd.safetensors"), {"odd": ("U8", (3,)), "a": ("F32", (4, 6))})
        right = weightd.open(path)["a"].torch()[:, 2:4]
        cut = weightd.open(path, slices={"a": (1, 1, 3)})["a"]
        self.assertTrue(torch.equal(cut.torch(), right))
        self.assertEqual(cut.numpy().tobytes(), right.contiguous().numpy().tobytes())

    def test_what_cannot_be_cut_is_told(self):
        for slices, words in [
            ({"F32": (3, 0, 2)}, [self.path, '"F32"', "dimension 3"]),
            ({"F32": (1, 0, 4)}, [self.path, '"F32"', "6", "4 parts"]),
            ({"F32": (1, 2, 2)}, ['"F32"', "part 2 of 2"]),
            ({"F32": (1, 0, 0)}, ['"F32"', "part 0 of 0"]),
            ({"F[": (1, 0, 2)}, ['"F["']),
            ({"lm_head": (1, 0, 2)}, [self.path, '"lm_head"']),
            ({"F32": (1, -1, 2)}, ["F32", "-1"]),
            ({"F32": 7}, ["F32", "7", "parts"]),
            ({7: None}, ["7", "pattern"]),
            ([("F32", None)], ["mapping"]),
        ]:
            with self.assertRaises(weightd.InvalidArgument):
                weightd.open(self.path, slices=slices)
            self.refuses(ValueError, words, lambda slices=slices: weightd.open(self.path, slices=slices))
        served = agent.Agent(self.at("x.sock"), lambda client: client.fail("usage", "it cannot be cut"))
        cut = {"F32": (1, 0, 4)}
        with self.assertRaises(weightd.InvalidArgument) as raised:
            weightd.open(self.path, slices=cut, agent=self.at("x.sock"))
        self.assertIn("it cannot be cut", str(raised.exception))
        served.close()

    def test_the_parts_are_all_there_is(self):
        whole = weightd.open(self.path)["F64"].torch()
        for dimension, parts in itertools.product(range(3), (1, 2)):
            cut = [weightd.open(self.path, slices={"F64": (dimension, part, parts)}) for part in range(parts)]
            joined = torch.cat([tensors["F64"].torch() for tensors in cut], dimension)
            self.assertTrue(torch.equal(joined, whole))
        self.assertFalse(os.path.exists(self.at("x.sock")))
