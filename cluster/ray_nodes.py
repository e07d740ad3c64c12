"""One script on several nodes of a Ray cluster: `python ray_nodes.py NODES '{"CPU": 8, "GPU": 8}' SCRIPT`.

Ray runs it as the entry of a job. Each node gets the address of the first one, its own and its number in the
environment: Ray's addresses, which need not be those that the nodes' names lead to. Told to stop, it tells all of them.
The whole ends with the worst status.
"""

import json
import os
import signal
import subprocess
import sys
from typing import Any

HEAD, ADDRESS, RANK = "GRAMSCOPE_HEAD", "GRAMSCOPE_ADDRESS", "GRAMSCOPE_NODE"


class Node:
    """The script on one node, as an actor: Ray would end a task without a word, and the script with it."""

    def address(self) -> str:
        """Ray's, of this node."""
        import ray

        return str(ray.util.get_node_ip_address())

    def run(self, script: str, folder: str, rank: int, head: str) -> int:
        """The script's status at its end."""
        mine = {HEAD: head, ADDRESS: self.address(), RANK: str(rank)}
        self.script = subprocess.Popen(["bash", script], env=os.environ | mine, cwd=folder)
        return self.script.wait()

    def stop(self) -> None:
        """Tells the script, which tells its processes."""
        self.script.send_signal(signal.SIGTERM)


def main(nodes: int, each: dict[str, int], script: str) -> int:
    """Runs the script on so many nodes, with these resources on each, and returns the worst status."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ray.init(address="auto", log_to_driver=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ray.get lets no other exception out of a handler
    group = placement_group([{name: count for name, count in each.items() if count}] * nodes, strategy="STRICT_SPREAD")
    try:
        ray.get(group.ready())
    except KeyboardInterrupt:
        return 128 + signal.SIGTERM

    def on(index: int) -> dict[str, Any]:
        strategy = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=index)
        wants = {"num_cpus": each.get("CPU", 0), "num_gpus": each.get("GPU", 0)}
        return wants | {"scheduling_strategy": strategy, "max_restarts": 0, "max_concurrency": 2}  # to run, and to stop

    there: list[Any] = [ray.remote(Node).options(**on(rank)).remote() for rank in range(nodes)]
    head = ray.get(there[0].address.remote())
    folder = os.getcwd()  # where workers are not
    running = [node.run.remote(script, folder, rank, head) for rank, node in enumerate(there)]
    try:
        ended = ray.get(running)
    except KeyboardInterrupt:
        ray.get([node.stop.remote() for node in there])
        ended = ray.get(running)
    return max(abs(status) for status in ended)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]))
