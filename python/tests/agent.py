"""An agent that lends tensors as docs/HANDOFF.md says, or does not: played by a thread, over real files in memory."""

import array
import fcntl
import os
import queue
import socket
import threading

import models

#: Answers, requests and failures as proto/weightd/v1/handoff.proto numbers them.
OPENED, ARENAS, READY, FAILED, DELIVERED, FULL = 1, 2, 3, 4, 5, 6
OPEN, WANT, RELEASE = 1, 2, 3
KINDS = {"usage": 1, "corrupt": 2, "not found": 3, "unavailable": 4, "try again": 6, "not permitted": 7, "memory": 8}

_F_ADD_SEALS, _F_SEAL_SHRINK, _F_SEAL_GROW, _F_SEAL_WRITE, _F_SEAL_FUTURE_WRITE = 1033, 2, 4, 8, 16


def varint(number):
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


def number(field, value):
    return varint(field << 3) + varint(value) if value else b""


def blob(field, value):
    value = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(value)) + value


def fields(message):
    """Field and value of everything in a message; values are numbers or bytes."""
    at = 0

    def read():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        tag, value = read(), read()
        if tag & 7 == 2:
            value, at = message[at : at + value], at + value
        yield tag >> 3, value


def ranges(want):
    """Those of a message that wants something."""
    said = [dict(fields(value)) for field, value in fields(want) if field == 1]
    return [(each.get(1, 0), each.get(2, 0)) for each in said]


class Arena:
    """Files in memory: what is filled here is seen by whoever was lent it."""

    def __init__(self, length, content=b"", seals=_F_SEAL_SHRINK | _F_SEAL_GROW | _F_SEAL_FUTURE_WRITE):
        import mmap

        file = os.memfd_create("arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.truncate(file, length)
        os.pwrite(file, content, 0)
        # Through which it is filled: nobody can make another one for writing.
        self.memory = None if seals & _F_SEAL_WRITE else mmap.mmap(file, length)
        fcntl.fcntl(file, _F_ADD_SEALS, seals)
        self.descriptor = os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)
        self.length = length
        os.close(file)

    def __del__(self):
        os.close(self.descriptor)


class Model:
    """Files of tensors, `{path: {name: (dtype, shape)}}`, each in an arena, in which nothing is yet.

    Of those in `slices` part `part` of `parts` along a dimension is told of.
    """

    def __init__(self, files, snapshot="5f0c.aligned", metadata=None, slices=None):
        self.snapshot = snapshot
        self.tensors = []
        self.arenas = []
        table = []
        for file, (path, tensors) in enumerate(files.items()):
            entries = b"".join(blob(2, blob(1, key) + blob(2, value)) for key, value in (metadata or {}).items())
            table.append(blob(1, blob(1, path) + entries))
            offset = 0
            for seed, (name, (dtype, shape)) in enumerate(tensors.items()):
                content = models.content(dtype, shape, seed)
                self.tensors.append((file, offset, content))
                told = described(dtype, shape, (slices or {}).get(name))
                place = number(4, file) + number(5, file) + number(6, offset + told["start"]) + number(7, told["bytes"])
                numbers = {field: b"".join(map(varint, told[at])) for field, at in {3: "shape", 8: "strides"}.items()}
                dimensions = b"".join(blob(field, packed) for field, packed in numbers.items() if packed)
                table.append(blob(2, blob(1, name) + blob(2, dtype) + dimensions + place))
                offset += -(-len(content) // 256) * 256
            self.arenas.append(Arena(max(-(-offset // 4096), 1) * 4096))
        self.table = b"".join(table)

    def fill(self, positions=None):
        for position in range(len(self.tensors)) if positions is None else positions:
            file, offset, content = self.tensors[position]
            self.arenas[file].memory[offset : offset + len(content)] = content
        return self


def described(dtype, shape, cut):
    """Shape, strides, first byte and bytes of a part of a tensor: (dimension, part, parts), or None for the whole."""
    strides = [1] * len(shape)
    for at in range(len(shape) - 1, 0, -1):
        strides[at - 1] = strides[at] * shape[at]
    if cut is None:
        return {"shape": shape, "strides": [], "start": 0, "bytes": len(models.content(dtype, shape))}
    dimension, part, parts = cut
    own = shape[dimension] // parts
    cut_shape = [*shape[:dimension], own, *shape[dimension + 1 :]]
    count = 1
    for length in cut_shape:
        count *= length
    start = part * own * strides[dimension] * models.BITS[dtype] // 8
    return {"shape": cut_shape, "strides": strides, "start": start, "bytes": count * models.BITS[dtype] // 8}


class Client:
    """An agent's end of a connection."""

    def __init__(self, connection):
        self.connection = connection
        self.opened = None
        #: What else was asked for: slices, whether anything but what is wanted shall come, and a ring.
        self.more = None

    def hear(self):
        """The kind of the next message, and what is in it; None at the end."""
        packet = self.connection.recv(1 << 16)
        return next(fields(packet)) if packet else None

    def hear_open(self):
        kind, message = self.hear()
        assert kind == OPEN, kind
        said = list(fields(message))
        self.opened = {
            "version": dict(said).get(1),
            "source": dict(said).get(2, b"").decode(),
            "files": [value.decode() for field, value in said if field == 3],
        }
        slices = [dict(fields(value)) for field, value in said if field == 5]
        ring = next((dict(fields(value)) for field, value in said if field == 6), None)
        self.more = {
            "slices": [(each[1].decode(), each.get(2, 0), each.get(3, 0), each.get(4, 0)) for each in slices],
            "wanted_only": bool(dict(said).get(4)),
            "ring": None if ring is None else (ring.get(1, 0), bool(ring.get(2))),
        }
        return self.opened

    def hear_want(self):
        """Ranges of the tensors that are wanted; None at the end."""
        heard = self.hear()
        if heard is None:
            return None
        assert heard[0] == WANT, heard
        return ranges(heard[1])

    def say(self, kind, message, descriptors=()):
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self.connection.sendmsg([blob(kind, message)], rights)

    def lend(self, model, complete=False, ring=None):
        table = Arena(len(model.table), model.table, _F_SEAL_SHRINK | _F_SEAL_GROW | _F_SEAL_WRITE)
        all_arenas = model.arenas if ring is None else [ring]
        opened = blob(1, model.snapshot) + blob(2, "gs://models/x") + number(3, len(model.table))
        opened += number(4, len(all_arenas)) + number(5, complete)
        self.say(OPENED, opened, [table.descriptor])
        for first in range(0, len(all_arenas), 64):
            arenas = all_arenas[first : first + 64]
            lengths = b"".join(varint(arena.length) for arena in arenas)
            self.say(ARENAS, number(1, first) + blob(2, lengths), [arena.descriptor for arena in arenas])

    def ready(self, start, end, verified=False):
        self.say(READY, blob(1, number(1, start) + number(2, end)) + number(2, verified))

    def fail(self, kind, message, remedy=""):
        self.say(FAILED, number(1, KINDS[kind]) + blob(2, message) + blob(3, remedy))

    def until_it_ends(self):
        while self.hear():
            pass


class Agent:
    """Serves connections, each in a thread, in turn as these functions have it; the last one serves all that follow."""

    def __init__(self, path, *serve):
        self.path = path
        self.ended = queue.Queue()
        self.problems = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind(path)
        self._socket.listen()
        threading.Thread(target=self._listen, args=(list(serve),), daemon=True).start()

    def _listen(self, serve):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            served = serve.pop(0) if len(serve) > 1 else serve[0]
            threading.Thread(target=self._serve, args=(connection, served), daemon=True).start()

    def _serve(self, connection, serve):
        with connection:
            try:
                serve(Client(connection))
            except (ConnectionError, BrokenPipeError):
                pass
            except Exception as problem:
                self.problems.append(problem)
                raise
        self.ended.put(True)

    def close(self):
        # Closing alone does not wake who accepts.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        os.unlink(self.path)


def lending(model, complete=True):
    """Lends a model until the client has enough; what is wanted is there as soon as it is."""

    def serve(client):
        client.hear_open()
        client.lend(model, complete)
        while (want := client.hear_want()) is not None:
            for start, end in want:
                model.fill(range(start, end))
                client.ready(start, end)
                client.ready(start, end, verified=True)

    return serve


def streaming(model, pages=8, end=None):
    """Has the tensors of a model that are wanted come through a ring of so many pages, and ends after so many."""

    def serve(client):
        client.hear_open()
        ring = Arena(4096 * pages)
        client.lend(model, ring=ring)
        queue, places, brought, told = [], {}, 0, None
        while brought != end:
            while queue and brought != end:
                position = queue[0]
                _, _, content = model.tensors[position]
                if position not in places and content:
                    place = _room(places, len(content), ring.length)
                    if place is None:
                        if told != (position, len(places)):
                            client.say(FULL, number(1, position) + number(2, len(content)))
                        told = (position, len(places))
                        break
                    ring.memory[place : place + len(content)] = content
                    places[position] = (place, -(-(place + len(content)) // 4096) * 4096)
                    client.say(DELIVERED, blob(1, number(1, position) + number(2, place)))
                    brought += 1
                queue.pop(0)
            if brought == end:
                break
            heard = client.hear()
            if heard is None:
                return
            if heard[0] == WANT:
                wanted = [at for start, stop in ranges(heard[1]) for at in range(start, stop)]
                queue = wanted + [at for at in queue if at not in wanted]
            else:
                assert heard[0] == RELEASE, heard
                for position in _numbers(dict(fields(heard[1]))[1]):
                    del places[position]

    return serve


def _room(places, length, end):
    """The first place with so many bytes, on pages of its own."""
    start = 0
    for first, behind in sorted(places.values()):
        if first - start >= length:
            return start
        start = behind
    return start if end - start >= length else None


def _numbers(packed):
    value = shift = 0
    for byte in packed:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield value
            value = shift = 0
