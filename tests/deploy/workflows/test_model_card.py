from draftpick.deploy.workflows.model_card import model_card

RESULT = {
    "survival/1": 0.5, "block_efficiency": 1.8, "parameters": 7.45e6, "python": "3.11.7",
    "corpus": {
        "prompts": ["gsm8k.jsonl:math"], "kinds": [], "n": 10, "max_tokens": 64, "temperatures": [0.0, 0.7],
        "target": "/models/big", "seed": 3, "sha256": {"gsm8k.jsonl": "ab12"},
    },
    "options": {"steps": 3, "parallel": False, "start": None, "fit": {"learning_rate": 6e-4, "seed": 0}},
}  # fmt: skip


def test_a_card_says_of_what_the_drafter_was_made_and_how_it_did() -> None:
    card = model_card("math", "An EAGLE-3 head", RESULT, "draftpick drafters eagle")
    assert card.startswith("# Drafter `math`\n\nAn EAGLE-3 head for big.\n")
    assert "| parameters | 7.45 M, bfloat16 |" in card
    assert "temperature 0 and 0.7) to prompts of `gsm8k.jsonl:math`" in card
    assert "| sha256 | gsm8k.jsonl ab12 |" in card
    assert "| training | steps 3, learning rate 0.0006, seed 0 |" in card
    assert "| on held-out answers | survival/1 0.500, block_efficiency 1.800 |" in card
    assert "| command | `draftpick drafters eagle` |" in card
