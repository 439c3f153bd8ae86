"""Run in network and process namespaces of its own: starts a cluster by a script and asks who gets in.

    unshare --pid --net --fork --mount-proc --kill-child python who_gets_in.py SCRIPT TOKEN_FILE MARKER

Prints one line of JSON: the status of each request to the Jobs API, on which addresses it listens, whether a
job of somebody without the token ran (it would touch MARKER). Everything ends with the namespace.
"""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

PORT = 8265  # the dashboard's, as Ray has it by itself
START_S = 120
ADDRESS = "10.77.0.1"  # the machine's, which nobody else can reach
NETWORK = (
    "link set lo up",
    "link add machine type veth peer name nobody",
    f"addr add {ADDRESS}/24 dev machine",
    "link set machine up",
    "link set nobody up",
)


def ask(token: str | None, data: bytes | None = None) -> int:
    """Return the status of a request to the Jobs API; 0 where nobody answers."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/api/jobs/", data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def main() -> None:
    """Start, ask, print."""
    script, token_file, marker = sys.argv[1:]
    for words in NETWORK:
        subprocess.run(["ip", *words.split()], check=True)
    with Path(f"{script}.log").open("w") as log:
        subprocess.Popen(["bash", script], stdout=log, stderr=log)
    until = time.monotonic() + START_S
    while not (Path(token_file).exists() and ask(Path(token_file).read_text()) == 200):
        assert time.monotonic() < until, Path(f"{script}.log").read_text()
        time.sleep(0.5)
    job = json.dumps({"entrypoint": f"touch {marker}"}).encode()
    found: dict[str, object] = {
        "post without": ask(None, job),
        "post with another": ask("wrong" * 8, job),
        "get without": ask(None),
    }
    time.sleep(2)
    listening = [each.laddr for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    addresses = sorted({address.ip for address in listening if address.port == PORT})
    print(json.dumps(found | {"listens on": addresses, "ran": Path(marker).exists()}))


if __name__ == "__main__":
    main()
