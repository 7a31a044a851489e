"""Only some of the tensors: nothing else is there, and an agent is asked for nothing else."""

import agent
import models
import numpy
import weightd

#: Tensors that share no page with another one.
ONE = {f"layers.{at}.{kind}": ("U8", (4096,)) for at in range(2) for kind in ("up", "down")}
TWO = {"norm": ("U8", (4096,)), "none": ("F32", (0, 3)), "odd[0]": ("U8", (4096,))}
FILES = {"1.safetensors": ONE, "2.safetensors": TWO}
ORDER = [*ONE, *TWO]


class Names(models.WithDirectory):
    def setUp(self):
        super().setUp()
        self.asked, self.wanted = [], []
        for name, tensors in FILES.items():
            models.write(self.at(name), tensors)

    def lending(self, model, end=None):
        """Brings what is wanted, and ends after so many requests."""

        def serve(client):
            client.hear_open()
            self.asked.append(client.more["wanted_only"])
            client.lend(model)
            heard = 0
            while heard != end and (want := client.hear_want()) is not None:
                heard += 1
                self.wanted.append([ORDER[at] for start, stop in want for at in range(start, stop)])
                for start, stop in want if heard != end else []:
                    model.fill(range(start, stop))
                    client.ready(start, stop)

        return serve

    def serve(self, *serve):
        served = agent.Agent(self.at(".weightd.sock"), *serve)
        self.addCleanup(served.close)
        self.addCleanup(lambda: self.assertEqual(served.problems, []))

    def test_they_are_chosen_by_a_function_by_names_and_by_patterns(self):
        for names, right in [
            (lambda name: name.endswith("up"), ["layers.0.up", "layers.1.up"]),
            (["norm", "layers.1.*"], ["layers.1.up", "layers.1.down", "norm"]),
            (iter(["*.{up,down}"]), list(ONE)),
            ({"norm": 1, "none": 2}, ["norm", "none"]),
            # A name is a name, even if it could be a pattern.
            (["odd[0]"], ["odd[0]"]),
            (["nothing*"], []),
            ([], []),
        ]:
            with weightd.open(self.directory, names=names) as tensors:
                self.assertEqual(tensors.offset_keys(), right)
                self.assertEqual((tensors.keys(), len(tensors)), (sorted(right), len(right)))
                self.assertNotIn("layers.9.up", tensors)
                for name in set(ORDER) - set(right):
                    self.assertNotIn(name, tensors)
                    self.refuses(weightd.TensorNotFound, [self.directory, name], tensors.__getitem__, name)
                for name in right:
                    seed = list(ONE if name in ONE else TWO).index(name)
                    self.assertEqual(tensors[name].numpy().tobytes(), models.content(*{**ONE, **TWO}[name], seed))
                tensors.wait()

    def test_names_that_are_none_are_told(self):
        self.refuses(KeyError, [self.directory, '"lm_head"'], lambda: weightd.open(self.directory, names=["lm_head"]))
        for names in ("norm", 7, [7]):
            self.refuses(weightd.InvalidArgument, ["names"], lambda names=names: weightd.open(self.directory, names=names))
        self.refuses(ValueError, ["norm["], lambda: weightd.open(self.directory, names=["norm["]))

        def fails(name):
            raise RuntimeError(name)

        with self.assertRaises(RuntimeError):
            weightd.open(self.directory, names=fails)

    def test_an_index_is_checked_against_all_of_them(self):
        with open(self.at("model.safetensors.index.json"), "w") as file:
            file.write('{"weight_map": {"norm": "2.safetensors", "layers.0.up": "1.safetensors"}}')
        self.assertEqual(weightd.open(self.directory, names=["norm"]).keys(), ["norm"])

    def test_an_agent_is_asked_for_nothing_else_in_the_order_of_the_files(self):
        self.serve(self.lending(agent.Model(FILES)))
        tensors = weightd.open(self.directory, names=["norm", "none", "layers.*.down"])
        tensors.wait()
        self.assertEqual(tensors["norm"].numpy().tobytes(), models.content("U8", (4096,), 0))
        self.assertEqual((self.asked, self.wanted[0]), ([True], ["layers.0.down", "layers.1.down", "norm"]))
        self.assertTrue(all(set(wanted) <= set(self.wanted[0]) for wanted in self.wanted))
        weightd.open(self.directory).wait()
        self.assertEqual(self.asked, [True, False])

    def test_the_next_agent_is_asked_for_the_same(self):
        self.serve(self.lending(agent.Model(FILES), end=1), self.lending(agent.Model(FILES)))
        tensors = weightd.open(self.directory, names=["layers.1.*"])
        self.assertEqual(tensors["layers.1.down"].numpy().tobytes(), models.content("U8", (4096,), 3))
        self.assertEqual(self.asked, [True, True])
        self.assertEqual(self.wanted[:2], [["layers.1.up", "layers.1.down"]] * 2)
        self.assertTrue(numpy.array_equal(tensors["layers.1.up"].numpy(), numpy.asarray(tensors["layers.1.up"])))
