"""A headless Chromium, driven by its own DevTools protocol."""

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import aiohttp

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")
SIZE = "--window-size=1500,1900"


def visit(address: str, scripts: list[str], picture: Path | None = None, patience: float = 90) -> list[Any]:
    """What the JavaScript `scripts` give on the page at `address`, one after the other.

    Each is evaluated again and again until it gives something that is true, which fails after `patience` seconds.
    At the end the window as it is then goes to the PNG `picture`.
    """
    return asyncio.run(_visit(address, scripts, picture, patience))


async def _visit(address: str, scripts: list[str], picture: Path | None, patience: float) -> list[Any]:
    assert PROGRAM, "no Chromium"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        where = ["--remote-debugging-port=0", f"--user-data-dir={profile}", SIZE, "about:blank"]
        process = subprocess.Popen([PROGRAM, *OPTIONS, *where], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            opened = Path(profile) / "DevToolsActivePort"
            for _ in range(600):
                if opened.exists() and opened.read_text().strip():
                    break
                await asyncio.sleep(0.1)
            port = opened.read_text().splitlines()[0]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                    page = next(target for target in await answer.json() if target["type"] == "page")
                async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    await _call(socket, "Page.navigate", url=address)
                    found = [await _until_true(socket, script, patience) for script in scripts]
                    if picture:
                        shot = await _call(socket, "Page.captureScreenshot", format="png")
                        picture.write_bytes(base64.b64decode(shot["data"]))
            return found
        finally:
            process.kill()
            process.wait()


async def _call(socket: aiohttp.ClientWebSocketResponse, method: str, **params: Any) -> Any:
    await socket.send_str(json.dumps({"id": 1, "method": method, "params": params}))
    while True:
        answer = json.loads(await socket.receive_str())
        if answer.get("id") == 1:
            assert "error" not in answer, answer["error"]
            return answer["result"]


async def _until_true(socket: aiohttp.ClientWebSocketResponse, script: str, patience: float) -> Any:
    for _ in range(int(patience / 0.25)):
        answer = await _call(socket, "Runtime.evaluate", expression=script, returnByValue=True)
        if value := answer["result"].get("value"):
            return value
        await asyncio.sleep(0.25)
    shown = await _call(socket, "Runtime.evaluate", expression="document.body.innerText", returnByValue=True)
    raise AssertionError(f"never true: {script}\non a page that says:\n{shown['result'].get('value', '')[:3000]}")
