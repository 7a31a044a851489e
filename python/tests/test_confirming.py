"""Bytes that turn out to be wrong after they came: who learns of it, and where the right ones come from."""

import agent
import models
import numpy
import weightd
from test_handoff import PAGES, WithAgent, right


class Confirming(WithAgent):
    def setUp(self):
        super().setUp()
        models.write(self.at("1.safetensors"), PAGES)
        self.first, self.next = (agent.Model({"1.safetensors": PAGES}) for _ in range(2))
        self.opened = 0

    def open(self, *serve, **options):
        def counted(client, each):
            self.opened += 1
            each(client)

        self.serve(*(lambda client, each=each: counted(client, each) for each in serve))
        return weightd.open(self.at("1.safetensors"), **options)

    def gives(self, then, verified=False):
        """Brings the first tensor, and does something else when another is wanted."""

        def serve(client):
            client.hear_open()
            client.lend(self.first.fill([0]))
            client.hear_want()
            client.ready(0, 1)
            if verified:
                client.ready(0, 1, verified=True)
            client.hear_want()
            then(client)

        return serve

    def spoil(self):
        """What the first agent brings is not what the origin has."""
        file, offset, content = self.first.tensors[0]
        self.first.tensors[0] = (file, offset, bytes([content[0] ^ 1]) + content[1:])

    @staticmethod
    def is_wrong(client):
        client.fail("corrupt", "gs://models/x/1.safetensors: it did not match its checksum")

    def test_an_agent_whose_bytes_were_wrong_is_asked_once_more(self):
        tensors = self.open(self.gives(self.is_wrong, verified=True), agent.lending(self.next, complete=False), verified=True)
        first = tensors["a"].numpy()
        self.assertEqual(tensors["b"].numpy().tobytes(), right("U8", (4096,), 1))
        self.assertEqual(self.opened, 2)
        # What was known to be right is where it was.
        self.assertEqual(tensors["a"].numpy().ctypes.data, first.ctypes.data)

    def test_what_was_used_before_is_compared_with_what_is_right(self):
        tensors = self.open(self.gives(self.is_wrong), agent.lending(self.next, complete=False))
        tensors["a"].numpy()[:] = 9
        self.assertEqual(tensors["b"].numpy().tobytes(), right("U8", (4096,), 1))

    def test_what_was_used_and_is_wrong_is_an_error_with_its_name(self):
        self.spoil()
        tensors = self.open(self.gives(self.is_wrong), agent.lending(self.next, complete=False))
        tensors["a"].numpy()
        self.refuses(weightd.InvalidFile, ['"a"', self.socket, "open it again"], tensors["b"].raw)

    def test_an_origin_that_is_wrong_for_good_is_an_error(self):
        def serve(client):
            client.hear_open()
            client.lend(self.first)
            client.hear_want()
            self.is_wrong(client)

        tensors = self.open(serve)
        self.refuses(weightd.InvalidFile, ["1.safetensors", "checksum"], tensors["b"].raw)
        self.assertLess(self.opened, 10)

    def test_one_may_wait_until_it_is_known_to_be_right(self):
        tensors = self.open(agent.lending(self.first, complete=False))
        tensors["a"].numpy()
        tensors.wait(["a"], verified=True)
        with weightd.open(self.at("1.safetensors"), agent=False) as files:
            files.wait(verified=True)

    def test_what_a_dead_agent_gave_is_compared_with_what_the_next_one_has(self):
        for is_spoiled in (False, True):
            if is_spoiled:
                self.spoil()
            served = agent.Agent(self.at("x.sock"), self.gives(lambda client: None), agent.lending(self.next, complete=False))
            tensors = weightd.open(self.at("1.safetensors"), agent=self.at("x.sock"))
            numpy.asarray(tensors["a"])[:] = 9
            if is_spoiled:
                self.refuses(weightd.InvalidFile, ['"a"'], lambda: tensors.wait(verified=True))
            else:
                tensors.wait(verified=True)
            served.close()
