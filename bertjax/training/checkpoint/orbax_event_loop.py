"""Event loops that outlive what runs on them, so that one failed read among many is one error."""

import asyncio
import contextlib
from collections.abc import Iterator


class _OrbaxEventLoop(asyncio.SelectorEventLoop):
    """Waits for its tasks before it closes.

    Orbax closes its loop when the first array fails to read. The other reads would then go on with nobody to report to,
    and each would print a traceback of its own.
    """

    def close(self) -> None:
        if not self.is_closed():
            self.set_exception_handler(lambda loop, context: None)
            while pending := asyncio.all_tasks(self):
                self.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        super().close()


class _OrbaxEventLoopPolicy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _OrbaxEventLoop()


@contextlib.contextmanager
def orbax_event_loop() -> Iterator[None]:
    """While it is open, every new event loop is a patient one."""
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_OrbaxEventLoopPolicy())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(before)
