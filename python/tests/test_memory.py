"""Whose memory it is: nothing is copied, what is written stays here, and the mapping lives as long as its tensors."""

import ctypes
import gc
import os
import threading

import models
import numpy
import weightd

MODEL = {"a": ("F32", (64, 64)), "b": ("I64", (32,))}


def address(tensor):
    return tensor.__array_interface__["data"][0]


class Memory(models.WithDirectory):
    def setUp(self):
        super().setUp()
        self.path = models.write(self.at("x.safetensors"), MODEL)

    def test_arrays_lie_in_the_mapping(self):
        tensors = weightd.open(self.path)
        a, b = tensors["a"], tensors["b"]
        for way in (a.numpy(), numpy.asarray(a), a.raw().numpy()):
            self.assertEqual(way.ctypes.data, address(a))
            self.assertTrue(way.flags.writeable)
        # Before numpy 2.1 that was never writable, whoever lent it.
        self.assertEqual(numpy.from_dlpack(a).ctypes.data, address(a))
        self.assertEqual(address(b) - address(a), a.nbytes)
        # And all of it in what the file is mapped at.
        with open("/proc/self/maps") as maps:
            line = next(line for line in maps if os.path.realpath(self.path) in line)
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        self.assertIn("rw-p", line)
        self.assertTrue(start < address(a) and address(b) + b.nbytes <= end)

    def test_what_is_written_stays_in_this_mapping(self):
        with open(self.path, "rb") as file:
            before = file.read()
        mine, others = weightd.open(self.path), weightd.open(self.path)
        read = others["a"].numpy()
        mine["a"].numpy()[:] = 7
        self.assertTrue((mine["a"].numpy() == 7).all())
        self.assertEqual(read.tobytes(), models.content("F32", (64, 64)))
        with open(self.path, "rb") as file:
            self.assertEqual(file.read(), before)

    def test_a_file_that_may_not_be_written_is_enough(self):
        os.chmod(self.path, 0o444)
        weightd.open(self.path)["a"].numpy()[0] = 1

    def test_the_mapping_lives_as_long_as_the_last_array(self):
        tensors = weightd.open(self.path)
        arrays = [tensors["a"].numpy(), numpy.from_dlpack(tensors["a"]), numpy.asarray(tensors["a"])]
        tensors.close()
        del tensors
        os.unlink(self.path)
        for _ in range(3):
            gc.collect()
            self.assertTrue(models.is_mapped(self.path))
            self.assertEqual(arrays.pop().tobytes(), models.content("F32", (64, 64)))
        gc.collect()
        self.assertFalse(models.is_mapped(self.path))

    def test_a_capsule_that_nobody_takes_lets_go(self):
        tensors = weightd.open(self.path)
        capsules = [tensors["a"].__dlpack__(), tensors["a"].__dlpack__(max_version=(1, 0))]
        del tensors
        while capsules:
            self.assertTrue(models.is_mapped(self.path))
            capsules.pop()
        self.assertFalse(models.is_mapped(self.path))

    def test_threads_open_and_read_at_once(self):
        wrong = []

        def read():
            for _ in range(50):
                with weightd.open(self.path) as tensors:
                    array = numpy.from_dlpack(tensors["a"])
                if array.tobytes() != models.content("F32", (64, 64)):
                    wrong.append(array)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])
        gc.collect()
        self.assertFalse(models.is_mapped(self.path))

    def test_opening_reads_no_tensor(self):
        path = self.at("sparse.safetensors")
        huge = {"huge": ("U8", (0,))}
        models.write(path, huge)
        # A hole of 64 GiB: more than this machine has, and nothing to read.
        length = 64 << 30
        text = b'{"huge":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (length, length)
        with open(path, "wb") as file:
            file.write(ctypes.c_uint64(len(text)))
            file.write(text)
            file.truncate(8 + len(text) + length)
        array = weightd.open(path)["huge"].numpy()
        self.assertEqual(array.shape, (length,))
        self.assertEqual(array[-1], 0)


class Misaligned(models.WithDirectory):
    """Nothing in the format puts a tensor on a multiple of its element."""

    def setUp(self):
        super().setUp()
        tensors = {"odd": ("U8", (3,)), "f32": ("F32", (5,)), "f8": ("F8_E4M3", (3,))}
        self.path = models.write(self.at("x.safetensors"), tensors)
        self.tensor = weightd.open(self.path)["f32"]
        self.right = models.content("F32", (5,), 1)

    def test_it_is_copied_once_it_is_used(self):
        self.assertNotEqual(address(self.tensor) % 4, 0)
        for way in (self.tensor.numpy(), numpy.from_dlpack(self.tensor)):
            self.assertNotEqual(way.ctypes.data, address(self.tensor))
            self.assertEqual(way.ctypes.data % 64, 0)
            self.assertEqual(way.tobytes(), self.right)
        self.refuses(BufferError, ["f32", self.path], lambda: self.tensor.__dlpack__(copy=False))

    def test_numpy_takes_it_where_it_is(self):
        array = numpy.asarray(self.tensor)
        self.assertEqual((array.ctypes.data, array.tobytes()), (address(self.tensor), self.right))

    def test_bytes_are_never_misaligned(self):
        tensor = weightd.open(self.path)["f8"]
        self.assertEqual(address(tensor.raw()), address(tensor))
