"""One script on several nodes of a Ray cluster: `python ray_nodes.py NODES '{"CPU": 8, "GPU": 8}' SCRIPT`.

Ray runs it as the entry of a job. Each node gets the address of the first one and its own number in the environment;
the whole ends with the first status that is not 0.
"""

import json
import os
import subprocess
import sys
from typing import Any

HEAD, RANK = "GRAMSCOPE_HEAD", "GRAMSCOPE_NODE"


def main(nodes: int, each: dict[str, int], script: str) -> int:
    """Runs the script on so many nodes, with these resources on each, and returns the worst status."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    here = os.getcwd()  # where workers are not
    ray.init(address="auto", log_to_driver=True)
    group = placement_group([{name: count for name, count in each.items() if count}] * nodes, strategy="STRICT_SPREAD")
    ray.get(group.ready())

    def on(index: int) -> dict[str, Any]:
        strategy = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=index)
        wants = {"num_cpus": each.get("CPU", 0), "num_gpus": each.get("GPU", 0)}
        return wants | {"scheduling_strategy": strategy, "max_retries": 0}

    def run(rank: int, head: str) -> int:
        return subprocess.call(["bash", script], env=os.environ | {HEAD: head, RANK: str(rank)}, cwd=here)

    address, start = ray.remote(ray.util.get_node_ip_address), ray.remote(run)
    head = ray.get(address.options(**on(0)).remote())
    return max(
        abs(status) for status in ray.get([start.options(**on(rank)).remote(rank, head) for rank in range(nodes)])
    )


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]))
