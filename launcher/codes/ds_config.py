"""E3xx: DeepSpeed configs."""

from __future__ import annotations

from launcher.codes.info import CodeInfo

CODES: dict[str, CodeInfo] = {
    "E301": CodeInfo(
        title="not JSON",
        when="The DeepSpeed config cannot be parsed as one JSON object.",
        remedy="Mend the line that is named; comments and trailing commas are no JSON.",
    ),
    "E302": CodeInfo(
        title="duplicate key in a DeepSpeed config",
        when="The same key stands twice in one object.",
        remedy="Keep one of the two.",
    ),
    "E303": CodeInfo(
        title="key that DeepSpeed ignores",
        when="DeepSpeed does not know the key and says nothing.",
        remedy="Use the suggested key or remove the line.",
    ),
    "E304": CodeInfo(
        title="key that DeepSpeed refuses",
        when="DeepSpeed does not know the key and stops with an error.",
        remedy="Use the suggested key or remove the line.",
    ),
    "E305": CodeInfo(
        title="value that DeepSpeed refuses",
        when="A value has the wrong type or range.",
        remedy="Use a value that is named.",
    ),
    "E306": CodeInfo(
        title="removed feature",
        when="This version of DeepSpeed stops on the key, even with enabled: false.",
        remedy="Remove the key.",
    ),
    "E307": CodeInfo(
        title="batch sizes contradict each other",
        when="train_batch_size is not micro x accumulation x ranks for any number of ranks, or none of the sizes is given.",
        remedy="Give two of the three, or make the three agree.",
    ),
    "E308": CodeInfo(
        title="combination that trains wrongly",
        when="DeepSpeed accepts the combination and computes something else.",
        remedy="Use the ZeRO stage that is named.",
    ),
    "E309": CodeInfo(
        title="setting without effect in this combination",
        when="DeepSpeed accepts the setting and ignores it in this combination.",
        remedy="Use the ZeRO stage that is named, or remove the line.",
    ),
    "E310": CodeInfo(
        title="auto where DeepSpeed reads it",
        when="DeepSpeed has no auto: it stops there, or silently takes its default.",
        remedy="Write the number out.",
    ),
    "E311": CodeInfo(
        title="unknown optimizer or scheduler",
        when="The type is none that DeepSpeed or torch has under this name.",
        remedy="Use the suggested name.",
    ),
    "E312": CodeInfo(
        title="value that means something else",
        when="DeepSpeed accepts the value and understands another thing.",
        remedy="Use a value that is named.",
    ),
    "E313": CodeInfo(
        title="combination that DeepSpeed refuses",
        when="Two settings exclude each other.",
        remedy="Keep one of the two.",
    ),
    "E351": CodeInfo(
        title="deprecated key (warning)",
        when="The key still works and has a new name.",
        remedy="Use the new name.",
    ),
    "E352": CodeInfo(
        title="auto that only transformers fills in (warning)",
        when="transformers' Trainer replaces the value; DeepSpeed itself does not understand it.",
        remedy="Write the number out.",
    ),
    "E353": CodeInfo(
        title="section that acts elsewhere (warning)",
        when="The section has an effect only together with code that reads it.",
        remedy="Remove it if the code does not.",
    ),
    "E354": CodeInfo(
        title="other than it looks (warning)",
        when="The setting works and does something that its name does not say.",
        remedy="Read the sentence and decide.",
    ),
}
