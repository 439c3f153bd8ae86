"""One Ray Data task per shard: run them, and tell what each returned."""

import json
import logging
from collections.abc import Callable
from typing import Any

from voxray.config.errors import InputError

Progress = Callable[[int, int], None]  # shards done, shards in all


def run_shard_tasks(
    function: Callable[[dict[str, Any]], dict[str, Any]], num: int, on_progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Let Ray Data call `function` with {"id": 0} … {"id": num - 1}; return the results in this order.

    `function` returns `id` and, as JSON, `result`. Raises InputError for `problems` in a result, OSError for
    a `failure` (errno and message). Ray is connected.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # `range` with one block per shard: one task reads its number, decodes and writes (the two are fused).
    results: dict[int, dict[str, Any]] = {}
    for row in ray.data.range(num, override_num_blocks=num).map(function).iter_rows():
        result = json.loads(row["result"])
        if problems := result.get("problems"):
            raise InputError(*problems)
        if (failure := result.get("failure")) is not None:
            raise OSError(*failure)
        results[row["id"]] = result
        if on_progress is not None:
            on_progress(len(results), num)
    return [results[i] for i in range(num)]
