"""An aiohttp application in a program's own loop."""

import asyncio
import sys

from aiohttp import web

import requiem_systemd as requiem
from aiohttp_app import make


async def main():
    """Serve."""
    runner = requiem.track_socket(web.AppRunner(make()))
    await runner.setup()
    try:
        if sys.argv[1:]:
            site = web.TCPSite(runner, "127.0.0.1", int(sys.argv[1]))
        else:
            site = web.SockSite(runner, requiem.listener("http"))
        await site.start()
        requiem.ready()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


requiem.aio.run(main())
