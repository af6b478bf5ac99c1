"""Keeps as many disks as guests are wanted, on the host whose API is named: a whole orchestrator over `nvmuser.client`.

nvmuser token create orchestrator --role operator > token
python samples/orchestrator.py http://127.0.0.1:8460 token 3 --size 10G
"""

import argparse
from pathlib import Path

from nvmuser.client import Client


def ensure(host: Client, count: int, size: str) -> None:
    """Declare disks `vm0`, `vm1` … with a controller each, and take away those that are not wanted any more.

    The same again changes nothing; a disk that a guest uses is not taken away.
    """
    wanted = [f"vm{number}" for number in range(count)]
    for name in wanted:
        host.put("volumes", name, {"size": size})
        controller = host.put("controllers", name, {"namespaces": [name]})
        print(f"{name}: {controller.status['state']}, {controller.status['socket']}")
    for controller in host.list("controllers"):
        if controller.name.startswith("vm") and controller.name not in wanted:
            host.delete("controllers", controller.name)
            host.delete("volumes", controller.name, wipe=True)
            print(f"{controller.name}: gone")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("token", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--size", default="1G")
    options = parser.parse_args()
    with Client(options.url, options.token.read_text().strip()) as client:
        ensure(client, options.count, options.size)
