"""A file layer that stops at the n-th change of a file: as ``kill -9`` does, or as a disk that is full from there on."""

import builtins
import errno
import io
import os
from contextlib import ExitStack, contextmanager
from unittest import mock

GROWING = ("open", "mkdir", "link", "fsync")
CHANGES = (*GROWING, "replace", "rename", "unlink", "remove", "rmdir")


class Killed(BaseException):
    """The process is gone: nothing that it does afterwards has an effect."""


class Changes:
    """Counts changes of files; from number ``stop_at`` on they fail, by ``Killed`` or for lack of space."""

    def __init__(self, stop_at, full):
        self.count, self.stop_at, self.full = 0, stop_at, full

    @property
    def stopped(self):
        return self.count >= self.stop_at

    def note(self, name):
        """Raises if this change does not happen."""
        if self.full and name not in GROWING:
            return
        self.count += 1
        if self.stopped:
            raise OSError(errno.ENOSPC, "No space left on device") if self.full else Killed

    def changed(self, name, function):
        def call(*arguments, **named):
            self.note(name)
            return function(*arguments, **named)

        return call

    def opened(self, function):
        def call(path, mode="r", *arguments, **named):
            if set(mode) & set("wax+"):
                try:
                    self.note("open")
                except BaseException:
                    if self.count == self.stop_at:  # stopped within the file, and no later one is begun
                        function(path, "wb").write(b"half")
                    raise
            return function(path, mode, *arguments, **named)

        return call


@contextmanager
def stopping_at(number, full=False):
    """Inside, files change ``number`` - 1 times; yields the ``Changes``."""
    changes = Changes(number, full)
    with ExitStack() as stack:
        for name in CHANGES:
            if name != "open":
                stack.enter_context(mock.patch.object(os, name, changes.changed(name, getattr(os, name))))
        for module in (io, builtins):
            stack.enter_context(mock.patch.object(module, "open", changes.opened(module.open)))
        yield changes


def stop_everywhere(prepare, work, full=False):
    """Yields number and folder of every stop: ``prepare()`` makes a folder, ``work(folder)`` is stopped at each change."""
    for number in range(1, 1000):
        folder = prepare(number)
        with stopping_at(number, full) as changes:
            try:
                work(folder)
            except Killed:
                assert not full
            except Exception:
                assert full
        yield number, folder
        if not changes.stopped:
            return
    raise AssertionError("the work never ends")
