"""A part of Upcall's C interface in Python, by ctypes: as much as batches of operations need.

The way of upcall.h for other languages: operations without callbacks, whose events wait as plain records. A loop is
submitted to, polled and reaped, each with many at a time, so that crossing between the languages costs once per batch.

UPCALL_LIBRARY in the environment names the shared library; without it the loader looks."""
import ctypes
import os
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p

_library = ctypes.CDLL(os.environ.get("UPCALL_LIBRARY", "libupcall.so.0.1"))

FULL = 1


class Op(ctypes.Structure):
    """upcall_op: made by a constructor below, then given a `user` and `flags`."""
    _fields_ = [("kind", c_uint32), ("flags", c_uint32), ("callback", c_void_p), ("user", c_uint64), ("timeout_ns", c_uint64),
                ("buffers", c_void_p), ("lend_max", c_uint32), ("fd", ctypes.c_int32), ("addr", c_uint64), ("addr2", c_uint64),
                ("len", c_uint64), ("offset", c_uint64), ("offset2", c_uint64), ("arg", c_uint32), ("arg2", c_uint32),
                ("reserved", c_uint64 * 4)]


class Event(ctypes.Structure):
    """upcall_event: `result` is the operation's value, or a negative errno; `user` is the op's."""
    _fields_ = [("id", c_uint64), ("user", c_uint64), ("result", c_int64), ("transferred", c_uint64), ("buffer", c_void_p),
                ("flags", c_uint32), ("kind", c_uint32), ("reserved", c_uint64 * 2)]


assert ctypes.sizeof(Op) == 128 and ctypes.sizeof(Event) == 64  # frozen: upcall.h


def _function(name, result, *arguments):
    function = getattr(_library, name)
    function.restype, function.argtypes = result, arguments
    return function


# The constructors. What they point to must live as upcall.h says: names until submit(), memory to be read into until the event.
open = _function("upcall_op_open", Op, c_int, c_char_p, c_int, c_uint32)  # pylint: disable=redefined-builtin
pread = _function("upcall_op_pread", Op, c_int, c_void_p, c_size_t, c_int64)
close = _function("upcall_op_close", Op, c_int)

_loop_new = _function("upcall_loop_new", c_int, c_void_p, POINTER(c_void_p))
_loop_free = _function("upcall_loop_free", c_int, c_void_p)
_loop_backend = _function("upcall_loop_backend", c_uint32, c_void_p)
_backend_name = _function("upcall_backend_name", c_char_p, c_uint32)
_submit = _function("upcall_submit", c_int, c_void_p, POINTER(Op), c_size_t, POINTER(c_uint64))
_poll = _function("upcall_poll", c_int, c_void_p, c_int64)
_reap = _function("upcall_reap", c_int, c_void_p, POINTER(Event), c_size_t)
_strerror = _function("upcall_strerror", c_char_p, ctypes.c_int32)
_last_error = _function("upcall_last_error", c_char_p)


def error(result):
    """The OSError of a negative result."""
    return OSError(-result, _strerror(result).decode())


def _check(result):
    if result < 0:
        raise OSError(-result, _last_error().decode())
    return result


class Loop:
    """A loop, as a context manager. It belongs to the thread that polls it."""

    def __init__(self):
        self._loop = c_void_p()
        _check(_loop_new(None, byref(self._loop)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        _check(_loop_free(self._loop))  # when it returns, nothing touches any memory of an operation any more

    @property
    def backend(self):
        return _backend_name(_loop_backend(self._loop)).decode()

    def submit(self, ops):
        """All of the ops, or none and an exception."""
        _check(_submit(self._loop, (Op * len(ops))(*ops), len(ops), None))

    def poll(self, timeout_ns=-1):
        """One turn. Other Python threads run while it waits."""
        return _check(_poll(self._loop, timeout_ns))

    def reap(self, room):
        """What has ended, at most as many as `room`, an array of Event, takes."""
        return room[:_check(_reap(self._loop, room, len(room)))]
