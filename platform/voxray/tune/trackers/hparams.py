"""TensorBoard's HParams table: a session per run of a trial, with what was drawn and the trial's scores."""

# TensorBoard's protocol buffers are made without types.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false, reportAttributeAccessIssue=false, reportMissingTypeStubs=false

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FAILED = "fail"


def write_session(
    folder: Path, trial: str, values: Mapping[str, Any], scores: Mapping[str, float], step: int, state: str
) -> None:
    """Write the session of one run anew, as event files in `folder`.

    `trial` names the row that it belongs to: runs of one trial (its seeds) are one row. Raises ImportError
    when TensorBoard is not installed.
    """
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    status = api_pb2.STATUS_FAILURE if state == FAILED else api_pb2.STATUS_SUCCESS
    end = plugin_data_pb2.HParamsPluginData(
        session_end_info=plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    )
    ended = summary_pb2.Summary()
    ended.value.add(
        tag=metadata.SESSION_END_INFO_TAG,
        metadata=metadata.create_summary_metadata(end),
        tensor=metadata.NULL_TENSOR,
    )
    scored = summary_pb2.Summary()
    for metric, score in scores.items():
        scored.value.add(tag=metric, simple_value=score)
    begun = summary_v2.hparams_pb({path: plain(value) for path, value in values.items()}, trial_id=trial)
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    writer = EventFileWriter(str(folder))
    for summary in (begun, scored, ended):
        writer.add_event(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))
    writer.close()


def plain(value: Any) -> bool | int | float | str:
    """Return a value as the table can hold it: a list, a map or null as JSON text."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)
