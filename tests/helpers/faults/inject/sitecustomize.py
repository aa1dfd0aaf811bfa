"""Imported by Python itself at start-up where the campaign has put it on the path: lets calls fail.

``FAULT`` is JSON: ``calls`` (names below), ``at`` (which of them fails, from 1), ``errno``, ``stay`` (whether
all later ones fail, too) and ``under`` (the folder they must be about). ``FAULT_CLOCK`` is ``SECONDS:N``: the
clock is set back by so much after its N-th reading. Only the process that was asked for is touched.
"""

import builtins
import errno
import io
import json
import os
import sys
import time

_count = 0


def _due(fault, place):
    global _count
    if not str(place).startswith(fault["under"]):
        return False
    _count += 1
    return _count == fault["at"] or (fault["stay"] and _count > fault["at"])


def _install(fault):
    code = getattr(errno, fault["errno"])

    def failing(name, call, place_of):
        def wrapper(*args, **kwargs):
            place = place_of(*args, **kwargs)
            if place is not None and _due(fault, os.path.abspath(place)):
                raise OSError(code, os.strerror(code), str(place))
            return call(*args, **kwargs)

        wrapper.__name__ = name
        return wrapper

    def opened(file, mode="r", *args, **kwargs):
        return file if isinstance(file, str | os.PathLike) and set(mode) & set("wax+") else None

    def of_fd(fd, *args, **kwargs):
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            return None

    def of_target(source, target, *args, **kwargs):
        return target

    def of_path(path, *args, **kwargs):
        return path

    places = {"write": of_fd, "fsync": of_fd, "replace": of_target, "mkdir": of_path}
    for name in fault["calls"]:
        if name == "open":
            builtins.open = io.open = failing("open", io.open, opened)
        else:
            setattr(os, name, failing(name, getattr(os, name), places[name]))


def _set_back(seconds, readings):
    real, count = time.time, 0

    def now():
        nonlocal count
        count += 1
        return real() - (seconds if count > readings else 0)

    time.time = now


if "multiprocessing" not in " ".join(sys.orig_argv):
    if os.environ.get("FAULT"):
        _install(json.loads(os.environ.pop("FAULT")))
    if os.environ.get("FAULT_CLOCK"):
        _set_back(*map(float, os.environ.pop("FAULT_CLOCK").split(":")))
