"""Made rows with the columns of the datasets that recipes/domains names."""

from typing import Any

from hybrid_ft.finetune.recipe.hub_files import hub_dataset

CHAT = [{"role": "user", "content": "Why is it blue?"}, {"role": "assistant", "content": "Because of the light."}]
WORSE = [CHAT[0], {"role": "assistant", "content": "No."}]
TOOL = '[{"name": "weather", "description": "The weather.", "parameters": {"city": {"type": "str"}}}]'
FINDING = {"contexts": ["Cells die.", "Leaves make holes."], "labels": ["A", "B"], "meshes": ["Cell"]}
TATQA = {
    "table": {"uid": "t", "table": [["", "2019", "2018"], ["Sales", "10", "8"]]},
    "paragraphs": [{"uid": "p", "order": 1, "text": "Amounts are in million."}],
    "questions": [
        {
            "question": "What grew?",
            "answer": ["Sales", "costs"],
            "derivation": "",
            "scale": "",
            "answer_type": "multi-span",
        },
        {
            "question": "By how much?",
            "answer": 2,
            "derivation": "10-8",
            "scale": "million",
            "answer_type": "arithmetic",
        },
    ],
}

ROWS: dict[str, dict[str, Any]] = {
    "GBaker/MedQA-USMLE-4-options-hf": {
        "id": "1", "sent1": "Which?", "sent2": "", "ending0": "a", "ending1": "b", "ending2": "c", "ending3": "d", "label": 2,
    },
    "openlifescienceai/medmcqa": {
        "id": "1", "question": "Which?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 1, "choice_type": "single",
        "exp": "It is b because of c.", "subject_name": "Anatomy", "topic_name": None,
    },
    "qiaojin/PubMedQA": {
        "pubid": 1, "question": "Do cells die?", "context": FINDING, "long_answer": "They do.", "final_decision": "yes",
    },
    "TsinghuaC3I/UltraMedical-Preference": {"prompt": CHAT[0]["content"], "chosen": CHAT, "rejected": WORSE, "label_type": "x"},
    "FreedomIntelligence/medical-o1-reasoning-SFT": {"Question": "Which?", "Complex_CoT": "Let me see.", "Response": "The heart."},
    "simplescaling/s1K-1.1": {
        "question": "How many?", "deepseek_thinking_trajectory": "One, two.", "deepseek_attempt": "Two.", "solution": "2",
        "gemini_attempt": "Two?",
    },
    "ise-uiuc/Magicoder-OSS-Instruct-75K": {"lang": "python", "problem": "Add.", "solution": "x = 1\r\ny = 2\r", "index": 1},
    "bigcode/self-oss-instruct-sc2-exec-filter-50k": {"instruction": "Add.", "response": "x\r\ny", "seed": "s", "id": 1},
    "nvidia/HelpSteer3": {
        "domain": "code", "language": "python", "context": CHAT[:1], "response1": "Light.", "response2": "No.",
        "overall_preference": -2, "individual_preference": [],
    },
    "meta-math/MetaMathQA": {"query": "1 + 1?", "response": "2. The answer is: 2", "original_question": "1 + 1?", "type": "GSM_AnsAug"},
    "coastalcph/lex_glue": {"context": "See (<HOLDING>).", "endings": ["p", "q", "r", "s", "t"], "label": 4},
    "TableQAKit/FinQA_retrieval": {
        "pre_text": ["Sales rose.", "A lot."], "table": [["", "2019"], ["Sales", "10"]], "post_text": ["End."],
        "qa": {"question": "How much?", "answer": "25%", "program_re": "divide(2, 8)"}, "id": "1",
    },
    "next-tat/TAT-QA": TATQA,
    "Salesforce/xlam-function-calling-60k": {
        "id": 1, "query": "Rain in Oslo?", "tools": TOOL, "answers": '[{"name": "weather", "arguments": {"city": "Oslo"}}]',
    },
    "UCSC-VLAA/m23k-tokenized": {
        "answer_idx": 1, "source": "x", "metadata": "{}", "prompt": "Which?\nA. a\nB. b", "answer_letter": "B",
        "answer_string": "b", "reasoning": "Let me see.", "distilled_answer_string": "It is B.", "text": "x",
    },
    "paraloq/json_data_extraction": {
        "title": "t", "topic": "m", "schema": '{"type": "object"}', "text": "Ann is 3.", "item": '{"name": "Ann", "age": 3}',
    },
    "THUDM/LongAlign-10k": {"messages": CHAT, "length": 9000},
    "datasets/quickstart/train.jsonl": {"prompt": "Two tables for Ann.", "completion": '{"name": "Ann", "tables": 2}'},
    "datasets/quickstart/preferences.jsonl": {"prompt": "For Ann.", "chosen": '{"name": "Ann"}', "rejected": '{"name": "Bob"}'},
    "NousResearch/hermes-function-calling-v1": {
        "id": "1", "category": "c", "task": "t",
        "conversations": [
            {"from": "system", "value": "Answer in JSON."}, {"from": "human", "value": "Ann is 3."}, {"from": "gpt", "value": '{"age": 3}'},
        ],
    },
    "bitext/Bitext-customer-support-llm-chatbot-training-dataset": {
        "flags": "B", "instruction": "cancel order {{Order Number}}", "category": "ORDER", "intent": "cancel_order",
        "response": "I cancel {{Order Number}}.",
    },
    "CohereLabs/aya_dataset": {"inputs": "Hva er klokka?", "targets": "Den er ni.", "language": "Norwegian", "language_code": "nob"},
    "allenai/coconot": {
        "id": "1", "category": "Safety", "subcategory": "x", "prompt": "How do I pick it?", "response": "I cannot help.",
        "chosen": "With a pick.", "rejected": "I cannot help.",
    },
    "allenai/Dolci-Instruct-SFT": {"id": "1", "messages": CHAT, "source_dataset": "WildChat", "domain": "Chat"},
    "allenai/Dolci-Instruct-DPO": {"id": "1", "chosen": CHAT, "rejected": WORSE, "source": "x"},
}  # fmt: skip
"""By the dataset's name on the hub, or its path here: one row."""

CONFIGURATIONS: dict[tuple[str, str | None], dict[str, Any]] = {
    ("coastalcph/lex_glue", "unfair_tos"): {"text": "We may end it.", "labels": [1, 7]},
    ("coastalcph/lex_glue", "ledgar"): {"text": "Oslo's law governs.", "label": "Governing Laws"},
    ("allenai/coconot", "original"): {
        k: v for k, v in ROWS["allenai/coconot"].items() if k not in ("chosen", "rejected")
    },
    ("allenai/coconot", "pref"): {k: v for k, v in ROWS["allenai/coconot"].items() if k != "response"},
}
"""Where the columns depend on the configuration."""


def row_of(path: str, name: str | None) -> dict[str, Any]:
    """The row of a source."""
    path = hub_dataset(path)
    return CONFIGURATIONS.get((path, name)) or ROWS[path]
