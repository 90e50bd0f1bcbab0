"""What reading messages comes upon and does not refuse."""

from __future__ import annotations

TEXT_LISTS, NO_LISTS = "message_lists_as_text", "texts_like_message_lists"
PADDING = "nulls_left_out_of_tools"
UNLISTED, IN_SYSTEM = "calls_of_unlisted_tools", "calls_of_tools_in_system_text"
CONSECUTIVE = "assistant_turns_in_a_row"
WEIGHTED = "turns_with_weights"
MISSING_AS_TEXT = "turns_that_are_nan_or_null"
PLACEHOLDERS = "turns_with_placeholders_of_media"
SCORES_REVERSED = "chosen_scored_below_rejected"
CHATS_AS_TEXT = "texts_that_are_chats"

NOTES = {
    TEXT_LISTS: "{unit}s whose lists of messages were text, read as turns",
    NO_LISTS: "{unit}s with a text that begins like a list of messages and cannot be parsed, taken as text",
    PADDING: "nulls left out of tools and calls, which no schema of a tool names",
    UNLISTED: "calls of tools that the {unit} does not list",
    IN_SYSTEM: "calls of tools that only the system text names",
    CONSECUTIVE: "assistant turns right behind another one, each trained to its own end token",
    WEIGHTED: "turns that weigh less than others in the loss, or whose parts do",
    MISSING_AS_TEXT: (
        "turns that are nothing but nan, None or null, as tables write what is missing; trained as they stand "
        "(without: {{completion: nan}} on the source leaves such rows out)"
    ),
    PLACEHOLDERS: "turns with <image>, <audio> or <video> and nothing in that place; trained as text",
    CHATS_AS_TEXT: (
        "texts that look like chats written out, of which every token is trained, the user's turns too "
        "(for the answers alone give messages: [{{role: user, content: ...}}, ...])"
    ),
    SCORES_REVERSED: "{unit}s whose chosen answer has the lower score",
}
"""How a note puts each."""

UNITS = {
    PADDING: "nulls",
    UNLISTED: "calls",
    IN_SYSTEM: "calls",
    CONSECUTIVE: "turns",
    WEIGHTED: "turns",
    MISSING_AS_TEXT: "turns",
    PLACEHOLDERS: "turns",
}
"""What a count counts, where it is not rows."""
