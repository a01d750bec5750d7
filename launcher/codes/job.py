"""E1xx: the job file and the command line."""

from __future__ import annotations

from launcher.codes.info import CodeInfo

CODES: dict[str, CodeInfo] = {
    "E101": CodeInfo(
        title="file not readable",
        when="The job file does not exist, is a folder or may not be read.",
        remedy="Check the path and its permissions.",
    ),
    "E102": CodeInfo(
        title="not YAML",
        when="The text cannot be parsed as one YAML document of plain values.",
        remedy="Mend the line that is named; tabs, several documents, tags, anchors and aliases are refused.",
    ),
    "E103": CodeInfo(
        title="duplicate key", when="The same key stands twice in one mapping.", remedy="Keep one of the two lines."
    ),
    "E104": CodeInfo(
        title="unknown key", when="A key is not part of the job file.", remedy="Use the suggested key or remove the line."
    ),
    "E105": CodeInfo(
        title="wrong type", when="A value has another type than the field.", remedy="Write a value of the named type."
    ),
    "E106": CodeInfo(
        title="value out of range",
        when="A value is of the right type but outside of what can work.",
        remedy="Use a value inside the named bounds.",
    ),
    "E107": CodeInfo(title="missing field", when="A field that only the user can know is absent.", remedy="Add the field."),
    "E108": CodeInfo(
        title="unknown value", when="A value is not one of the allowed words.", remedy="Use one of the listed words."
    ),
    "E109": CodeInfo(
        title="fields exclude each other",
        when="Two fields contradict each other or one is needed by the other.",
        remedy="Keep the one that you mean.",
    ),
    "E110": CodeInfo(
        title="stage chain is broken",
        when="`from` or `reward` names no stage, a later one, itself, or one that hands on the wrong kind of model.",
        remedy="Name an earlier stage of the right kind.",
    ),
    "E111": CodeInfo(title="usage", when="The command line is not understood.", remedy="See `launcher COMMAND --help`."),
    "E112": CodeInfo(
        title="override not understood",
        when="A --set override names no field or has no value.",
        remedy="Write --set path.to.field=value, with stages by their name.",
    ),
    "E113": CodeInfo(
        title="no such run",
        when="RUN is no run folder, run id or job name below the runs folder.",
        remedy="`launcher status` lists the runs that are there.",
    ),
    "E114": CodeInfo(
        title="local path not usable",
        when="A model, tokenizer, data or host file named in the job does not exist, may not be read, or is of the wrong kind.",
        remedy="Correct the path; it is relative to the job file.",
    ),
    "E115": CodeInfo(
        title="field without effect",
        when="A field is given that changes nothing beside the others.",
        remedy="Remove it.",
    ),
    "E116": CodeInfo(
        title="hostfile not understood",
        when="A line of the hostfile is not `host slots=N`, or a host stands twice.",
        remedy="Write one `host slots=N` a line.",
    ),
    "E117": CodeInfo(
        title="sizes of the new model do not fit",
        when="Heads do not divide the width or each other, or a head cannot take the family's positions.",
        remedy="Use the named sizes.",
    ),
    "E118": CodeInfo(
        title="environment variable refused",
        when="cluster.env sets a variable that would run foreign code or that looks like a secret.",
        remedy="Remove it from the job file; ranks inherit what the shell exports.",
    ),
    "E119": CodeInfo(
        title="file is there already",
        when="A file that would be written exists.",
        remedy="Choose another place, or say --force.",
    ),
    "E120": CodeInfo(
        title="stage named that is not there",
        when="--stage or STAGE names no stage of the job.",
        remedy="Use one of the listed stages.",
    ),
    "E121": CodeInfo(
        title="price file not understood",
        when="A field of the file that cluster.prices names is unknown or has a value that it cannot have.",
        remedy="Use the fields and bounds that are named.",
    ),
}
