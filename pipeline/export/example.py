"""Label texts by the model beside this file, with onnxruntime, tokenizers and numpy alone.

python predict.py "a text" "another"  # or a text a line on standard input; prints a JSON line each
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


def main(folder: Path = Path(__file__).parent) -> None:
    """Label all texts, 32 at a time."""
    labels = json.loads((folder / "labels.json").read_text("utf-8"))
    tasks, prompt = labels["tasks"], labels.get("prompt", "")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))  # which cuts and pads texts
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    names = [output.name for output in session.get_outputs()]
    texts = sys.argv[1:] or [line.rstrip("\r\n") for line in sys.stdin]
    for start in range(0, len(texts), 32):
        encodings = tokenizer.encode_batch([prompt + text for text in texts[start : start + 32]])
        ids = np.array([encoding.ids for encoding in encodings], np.int64)
        mask = np.array([encoding.attention_mask for encoding in encodings], np.int64)
        outputs = session.run(names, {"input_ids": ids, "attention_mask": mask})
        for row in zip(*outputs, strict=True):
            print(json.dumps(name_answers(tasks, dict(zip(names, row, strict=True)))))


def name_answers(tasks: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """The answers to one text: TASK is a class, a list of tags or a number."""
    answers: dict[str, Any] = {}
    for name, task in tasks.items():
        label, scores = row[f"{name}_label"], row.get(f"{name}_probabilities", ())
        if task["type"] == "multilabel":
            chosen = np.flatnonzero(label)
            answers[name] = [task["classes"][index] for index in chosen]
            answers[f"{name}_score"] = [float(scores[index]) for index in chosen]
        elif task["type"] == "regression":
            answers[name] = float(label)
        else:
            answers |= {name: task["classes"][label], f"{name}_score": float(scores[label])}
    return answers


if __name__ == "__main__":
    main()
