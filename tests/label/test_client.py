"""One request of a kind is carried out, and the newest waits."""

from __future__ import annotations

import asyncio

from cytonym.label.client import Turn


def test_the_newest_comes_next_and_the_others_go_at_once() -> None:
    async def run() -> None:
        turn = Turn()
        assert await turn.come()
        second, third = (asyncio.create_task(turn.come()) for _ in range(2))
        assert await second is False  # the first is still at it
        assert not third.done()
        turn.done()
        assert await third is True
        turn.done()
        assert await turn.come()

    asyncio.run(run())


def test_who_gave_up_waiting_is_passed_over() -> None:
    async def run() -> None:
        turn = Turn()
        assert await turn.come()
        second = asyncio.create_task(turn.come())
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        turn.done()
        assert await turn.come()

    asyncio.run(run())
