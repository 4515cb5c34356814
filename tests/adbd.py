# SPDX-License-Identifier: Apache-2.0
"""A small adb daemon on loopback: what a phone answers to a real adb client and server.

The adb transport protocol without authentication, with the services that our device uses: `shell,v2` (stdin,
stdout, stderr and exit code in packets) and `sync:` (STAT, SEND). A folder of the host is the phone's root;
/data/local/tmp in a command is replaced by it. Written from AOSP's protocol.txt, SYNC.TXT and shell_protocol.h.

    python adbd.py ROOT PORT [MOST_BYTES]     pushes beyond MOST_BYTES fail as on a full disk
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import sys
from pathlib import Path

LIMIT = 256 * 1024
FEATURES = b"shell_v2,cmd,stat_v2"
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = 0, 1, 2, 3, 4


class Stream:
    """One service of a connection: what the client wrote, and writing with its acknowledgements."""

    def __init__(self, link: Link, own: int, other: int) -> None:
        self.link, self.own, self.other = link, own, other
        self.read = asyncio.StreamReader(limit=1 << 22)
        self.acknowledged = asyncio.Event()
        self.acknowledged.set()
        self.open = True

    async def write(self, data: bytes) -> None:
        for at in range(0, len(data), LIMIT):
            await self.acknowledged.wait()
            self.acknowledged.clear()
            await self.link.send(b"WRTE", self.own, self.other, data[at : at + LIMIT])

    async def close(self) -> None:
        await self.acknowledged.wait()
        if self.open:
            self.open = False
            await self.link.send(b"CLSE", self.own, self.other)


class Link:
    """A connection of the adb server."""

    def __init__(self, root: Path, most: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.root, self.most, self.reader, self.writer = root, most, reader, writer
        self.streams: dict[int, Stream] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.lock = asyncio.Lock()

    async def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        (number,) = struct.unpack("<I", command)
        head = struct.pack("<6I", number, first, second, len(data), sum(data) & 0xFFFFFFFF, number ^ 0xFFFFFFFF)
        async with self.lock:
            self.writer.write(head + data)
            await self.writer.drain()

    async def run(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                number, first, second, length, _, _ = struct.unpack("<6I", await self.reader.readexactly(24))
                data = await self.reader.readexactly(length)
                await self.packet(struct.pack("<I", number), first, second, data)
        for stream in self.streams.values():
            stream.read.feed_eof()

    async def packet(self, command: bytes, first: int, second: int, data: bytes) -> None:
        if command == b"CNXN":
            banner = b"device::ro.product.name=toy;ro.product.model=Toy;ro.product.device=toy;features=" + FEATURES
            await self.send(b"CNXN", 0x01000001, LIMIT, banner)
        elif command == b"OPEN":
            stream = self.streams[len(self.streams) + 1] = Stream(self, len(self.streams) + 1, first)
            task = asyncio.create_task(self.serve(stream, data.rstrip(b"\0").decode()))
            self.tasks.add(task)
        elif stream := self.streams.get(second):
            if command == b"OKAY":
                stream.acknowledged.set()
            elif command == b"WRTE":
                stream.read.feed_data(data)
                await self.send(b"OKAY", stream.own, stream.other)
            elif command == b"CLSE":
                stream.open = False
                stream.acknowledged.set()
                stream.read.feed_eof()

    async def serve(self, stream: Stream, service: str) -> None:
        await self.send(b"OKAY", stream.own, stream.other)
        kind, _, command = service.partition(":")
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            if kind.startswith("shell,v2"):
                await self.shell(stream, command)
            elif kind == "sync":
                await self.sync(stream)
        await stream.close()

    async def shell(self, stream: Stream, command: str) -> None:
        path = f"{self.root}/system/bin:{os.environ['PATH']}"
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", command.replace("/data/local/tmp", f"{self.root}/data/local/tmp"),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            cwd=self.root, env={**os.environ, "PATH": path},
        )  # fmt: skip
        assert process.stdin and process.stdout and process.stderr

        async def pump(source: asyncio.StreamReader, number: int) -> None:
            while data := await source.read(32768):
                await stream.write(struct.pack("<BI", number, len(data)) + data)

        async def feed(sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    number, length = struct.unpack("<BI", await stream.read.readexactly(5))
                    data = await stream.read.readexactly(length)
                    if number == CLOSE_STDIN:
                        break
                    if number == STDIN:
                        sink.write(data)
                        await sink.drain()
            sink.close()

        feeding = asyncio.create_task(feed(process.stdin))
        await asyncio.gather(pump(process.stdout, STDOUT), pump(process.stderr, STDERR))
        code = await process.wait()
        feeding.cancel()
        await stream.write(struct.pack("<BIB", EXIT, 1, code & 255))

    async def sync(self, stream: Stream) -> None:
        while True:
            name, length = struct.unpack("<4sI", await stream.read.readexactly(8))
            if name == b"QUIT":
                return
            path = (await stream.read.readexactly(length)).decode()
            if name == b"SEND":
                await self.receive(stream, self.root / path.rpartition(",")[0].lstrip("/"))
            elif name == b"STAT":
                found = self.root / path.lstrip("/")
                stat = found.stat() if found.exists() else None
                fields = (stat.st_mode, stat.st_size, int(stat.st_mtime)) if stat else (0, 0, 0)
                await stream.write(b"STAT" + struct.pack("<3I", *fields))
            else:  # STA2, LST2
                found = self.root / path.lstrip("/")
                stat = found.stat() if found.exists() else None
                body = (0, 0, 0, stat.st_mode, 1, 0, 0, stat.st_size, 0, 0, 0) if stat else (2, *[0] * 10)
                await stream.write(name + struct.pack("<IQQIIIIQqqq", *body))

    async def receive(self, stream: Stream, target: Path) -> None:
        got = 0
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            while True:
                name, length = struct.unpack("<4sI", await stream.read.readexactly(8))
                if name == b"DONE":
                    break
                data = await stream.read.readexactly(length)
                got += length
                if got <= self.most:
                    file.write(data)
        full = b"write failed: No space left on device"
        await stream.write(b"OKAY" + bytes(4) if got <= self.most else b"FAIL" + struct.pack("<I", len(full)) + full)


async def main() -> None:
    root, port = Path(sys.argv[1]), int(sys.argv[2])
    most = int(sys.argv[3]) if len(sys.argv) > 3 else 1 << 40
    (root / "data" / "local" / "tmp").mkdir(parents=True, exist_ok=True)
    server = await asyncio.start_server(lambda r, w: Link(root, most, r, w).run(), "127.0.0.1", port)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
