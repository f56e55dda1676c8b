"""Natives in few bytes: they say the same words again and again, so those are known beforehand.

What is packed is its mark and a raw deflate stream with WORDS as the preset dictionary (RFC 1951, and
zlib's `zdict`). JSON does not begin with the mark, so both can be read.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

_MARK: Final = b"\x01"  # Of these words: others, one day, get another one, as natives stay for good.
_LONGEST: Final = 1 << 16  # Of what is packed, so that a few bytes of anybody's do not become many.
_LEAST: Final = 32
_NEAR: Final = 4_096


def packed(data: bytes) -> bytes:
    """JSON, packed where that makes it shorter."""
    if not _LEAST <= len(data) <= _LONGEST:
        return data
    window = -13 if len(data) <= _NEAR else -15  # A small one is set up ten times as fast.
    squeezing = zlib.compressobj(6, zlib.DEFLATED, window, 6, zlib.Z_DEFAULT_STRATEGY, WORDS)
    squeezed = _MARK + squeezing.compress(data) + squeezing.flush()
    return squeezed if len(squeezed) < len(data) else data


def unpacked(data: bytes) -> bytes:
    """What was packed, as it was; anything else as it is, and nothing where it is too long or broken."""
    if not data.startswith(_MARK):
        return data
    stretching: Any = zlib.decompressobj(-15, WORDS)
    try:
        stretched: bytes = stretching.decompress(data[1:], _LONGEST + 1)
    except zlib.error:
        return b""
    is_whole = stretching.eof and not stretching.unused_data and len(stretched) <= _LONGEST
    return stretched if is_whole else b""


WORDS: Final = (
    b'{"parts":["append",["run_data","messages"],"provider_data":"reasoning_content":"references":[],"ci'
    b'tations":"cost":"cache_read_tokens":"cache_write_tokens":"reasoning_tokens":"audio_input_tokens":"'
    b'audio_output_tokens":"audio_total_tokens":["set",["run_data","additional_input"],["set",["run_data'
    b'","metadata"],{}],["set",["run_data","images"],[]],["set",["run_data","videos"],[]],["set",["run_d'
    b'ata","audio"],[]],["set",["run_data","files"],[]],["set",["run_data","step_results"],[{"content":"'
    b'","step_name":"","step_id":"","step_type":"Step","executor_type":"agent","executor_name":"","step_'
    b'run_id":"","images":null,"videos":null,"audio":null,"files":null,"success":true,"error":null,"stop'
    b'":false,"is_paused":false}]],["set",["run_data","step_executor_runs"],[{"run_id":"","agent_name":"'
    b'","session_id":"","parent_run_id":"","content":"","content_type":"str","status":"COMPLETED","workf'
    b'low_step_id":"","member_responses":[],["unset",["run_data","session_state"]],["set",["run_data","w'
    b'orkflow_name"],"["set",["run_data","team_name"],"["set",["run_type"],"team"]["set",["run_type"],"w'
    b'orkflow"],["set",["status"],"RUNNING"],["set",["run_data","status"],"RUNNING"],"PENDING""PAUSED""R'
    b'EGENERATED"["set",["run_data","requirements"],[{"id":"","created_at":"T00:00:00.000000+00:00","con'
    b'firmation":true,"tool_execution":{"tool_call_id":""requires_confirmation":true,"confirmed":true,["'
    b'set",["run_data","session_state","current_user_id"],["set",["run_data","events"],[]],{"session":[['
    b'"set",["session_data"],{}],["set",["agent_data"],{"name":"","agent_id":"","model":{"name":"","prov'
    b'ider":"","id":""}}],["set",["team_data"],null],["set",["workflow_data"],null],["set",["summary"],n'
    b'ull],["set",["created_at"],17],["set",["updated_at"],17]]}["set",["session_data","session_metrics"'
    b'],{"input_tokens":["set",["session_data","session_state"],{"session_name":{"session":[["set",["ses'
    b'sion_data","session_metrics","input_tokens"],1],["set",["session_data","session_metrics","output_t'
    b'okens"],1],["set",["session_data","session_metrics","total_tokens"],1],["set",["session_data","ses'
    b'sion_metrics","details","model"],[{"input_tokens":1,"output_tokens":1,"total_tokens":1,"id":"","pr'
    b'ovider":""}]],["set",["updated_at"],17]]}{"message":[["unset",["content"]],["set",["id"],""],["set'
    b'",["from_history"],false],["set",["stop_after_tool_call"],false],["set",["tool_args"],{"":""}],["s'
    b'et",["tool_call_error"],false],["set",["checkpoint_status"],"RUNNING"],["set",["checkpoint_created'
    b'_at"],17],["set",["metrics"],{"input_tokens":10,"output_tokens":5,"total_tokens":15,"time_to_first'
    b'_token":0.0}],["set",["created_at"],17]]}{"run":"","ops":[["set",["run_data","last_checkpoint_at_m'
    b'essage_index"],2],["set",["run_data","metrics","input_tokens"],1],["set",["run_data","metrics","ou'
    b'tput_tokens"],1],["set",["run_data","metrics","total_tokens"],1],["set",["run_data","metrics","dur'
    b'ation"],0.0],["set",["run_data","metrics","details","model"],[{"input_tokens":1,"output_tokens":1,'
    b'"total_tokens":1,"id":"","provider":""}]],"messages":[[0,9]]}{"run":"","calls":[["set",["0","metri'
    b'cs"],{"start_time":17,"end_time":17,"duration":0.000}],["set",["0","child_run_id"],null],["set",["'
    b'0","stop_after_tool_call"],false],["set",["0","created_at"],17],["set",["0","requires_confirmation'
    b'"],null],["set",["0","confirmed"],null],["set",["0","confirmation_note"],null],["set",["0","requir'
    b'es_user_input"],null],["set",["0","user_input_schema"],null],["set",["0","user_feedback_schema"],n'
    b'ull],["set",["0","answered"],null],["set",["0","external_execution_required"],null],["set",["0","e'
    b'xternal_execution_silent"],null],["set",["0","approval_type"],null],["set",["0","approval_id"],nul'
    b'l],["set",["0","parent_tool_call_id"],null]],"ops":[["set",["run_type"],"agent"],["set",["agent_id'
    b'"],""],["set",["team_id"],null],["set",["workflow_id"],null],["set",["user_id"],null],["set",["par'
    b'ent_run_id"],null],["set",["run_index"],1],["set",["run_data","agent_id"],""],["set",["run_data","'
    b'agent_name"],""],["set",["run_data","user_id"],""],["set",["run_data","content_type"],"str"],["set'
    b'",["run_data","model"],""],["set",["run_data","model_provider"],""],["set",["run_data","created_at'
    b'"],17],["set",["run_data","metrics"],{"input_tokens":20,"output_tokens":10,"total_tokens":30,"time'
    b'_to_first_token":0.0,"duration":0.0,"details":{"model":[{"input_tokens":20,"output_tokens":10,"tot'
    b'al_tokens":30,"id":"","provider":""}]}}],["set",["run_data","tools"],[{"tool_call_id":"call_","too'
    b'l_name":"","tool_args":{"":""},"tool_call_error":false,"result":"","metrics":{"start_time":17,"end'
    b'_time":17,"duration":0.000},"child_run_id":null,"stop_after_tool_call":false,"created_at":17,"requ'
    b'ires_confirmation":null,"confirmed":null,"confirmation_note":null,"requires_user_input":null,"user'
    b'_input_schema":null,"user_feedback_schema":null,"answered":null,"external_execution_required":null'
    b',"external_execution_silent":null,"approval_type":null,"approval_id":null,"parent_tool_call_id":nu'
    b'll}]],["set",["run_data","tools"],[]],["set",["created_at"],17],["set",["updated_at"],17]],"messag'
    b'es":[[0,2]]}'
)
"""What natives say often, the most frequent last."""
