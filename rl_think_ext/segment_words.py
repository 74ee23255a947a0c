"""Abbreviations and first words of sentences by language, for segment.py; a file replaces the abbreviations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from rl_think_ext.errors import UserError


@dataclass(frozen=True)
class Words:
    """What Punkt has to know of a language, each as words with blanks between, in lower case, without the last stop.

    Args:
        abbreviations: Their full stop ends a sentence only before a word of `starters`. Single letters need not stand
            here, nor "U.S" or "z.B"; a letter that does, as in a script without capitals, never ends one.
        before_number: Abbreviations only before a number or a letter: "Fig. 3", "No. 5" against "Is it? No."
        starters: Upper case here means the start of a sentence, even behind "etc." or the point "B.": Punkt learns
            such words from a corpus, and these are the ones that every text of the language has.
        ordinals: Whether "3." before an upper case word is "third": "am 3. Mai".
        model: nltk's name of its model of the language, if it has one.
    """

    abbreviations: str
    before_number: str = ""
    starters: str = ""
    ordinals: bool = False
    model: str = ""


_ENGLISH = Words(
    """
    al app approx arg assn ave ca capt cf cit co col corp cpl dept deg dr e.g ed eds esp etc ff fr ft gen gov govt hon
    hrs i.e ibid inc jr lt ltd maj messrs mr mrs ms mt ph.d prof prop pvt rd resp rev sen sgt sr st thm univ viz vs
    w.l.o.g w.r.t a.k.a s.t b.sc m.sc ssp jan feb apr jun jul aug sept oct nov dec tues thurs
    """,
    "no nos art ch chap eq eqn eqs est ex fig figs p par pp pt ref refs sec secs sect tab vol vols ver ca approx",
    """
    the this these those that it its he she i we you there then thus therefore hence so since if when while where which
    what who how why let in on at for from to as by with because but and or not now next first second finally also
    however after before our his her their they note suppose assume consider find given each every all some nobody
    nothing everybody one two here both no yes use see
    """,
    model="english",
)
_OTHER_SCRIPT = replace(_ENGLISH, model="")
WORDS = {
    "en": _ENGLISH,
    "de": Words(
        """
        bspw bzgl bzw ca co dgl dipl dr etc evtl fa ff fr ggf gmbh hl hr inkl insb jh jr max mind min mio mrd nr o.ä
        prof rd s.o sog st str tel u.a usw v.a vgl z.b zzgl jan feb apr aug sept okt nov dez
        """,
        "abb abs anm art bd gl kap nr s tab",
        """
        der die das ein eine er sie es wir ihr ich man dann da so wenn als aber und doch nun hier dort dies diese im in
        am an auf bei mit von zu für was wer wie wo nimm kein keine alle auch nach vor
        """,
        ordinals=True,
        model="german",
    ),
    "fr": Words(
        "mm mme mmes mlle dr pr me st ste av apr c.-à-d j.-c cf env etc ex id jr p.ex vol janv févr avr juil sept",
        "art chap éd fig n no nos p pp t vol",
        """
        le la les un une des il elle ils elles on ce cette ces c'est je tu nous vous et mais puis alors donc si quand
        dans en au aux de du pour par sur qui que rien ne
        """,
        model="french",
    ),
    "es": Words(
        "sr sra sres srta dña dr dra ud uds vd ee uu etc ej av avda prof gral aprox admón cía depto pto tel st",
        "art cap fig n núm p pág págs pp vol",
        """
        el la los las un una él ella ellos es se no lo le yo tú y pero si cuando en de con por para que luego entonces
        hay está este esta me su
        """,
        model="spanish",
    ),
    "it": Words(
        "sig sigg sig.ra dott dott.ssa prof prof.ssa ing avv arch ecc es a.c d.c ca on rev st tel",
        "art cap fig n p pag pagg pp vol",
        """
        il lo la i gli le un una è e ma poi se quando in di a da per con su che non lei lui loro noi voi io si era
        questo questa
        """,
        model="italian",
    ),
    "pt": Words(
        "sr sra srs dr dra prof profa eng av etc ex aprox cia depto tel st",
        "art cap fig n núm p pág págs pp vol",
        "o a os as um uma ele ela eles elas é está em no na de do da para por com que não se mas e quando eu isso",
        model="portuguese",
    ),
    "nl": Words(
        "dhr mevr mw dr drs ir ing mr prof bijv bv ca d.w.z enz evt o.a jl jr nl resp st t.o.v vgl z.g",
        "afb art blz fig nr p par tab vol",
        "de het een hij zij ze wij we ik jij u dat dit er dan en maar als toen in op aan bij met van voor wat wie hoe",
        model="dutch",
    ),
    "pl": Words(
        "np tzn tj itd itp dr prof mgr inż ul al pl św ok im m.in godz ww zob por tel",
        "art nr poz rys s str t tab ust",
        "on ona ono oni to ten ta i ale a w na z do po nie jest są było kiedy gdy jeśli tam tu",
        model="polish",
    ),
    "ru": Words(
        "т.е т.д т.п т.к и.о гг вв ул кв им проф акад др пр руб коп млн млрд тыс см напр ср стр св обл",
        "гл илл п пп рис с см ст стр табл т",
        """
        он она оно они это там тут потом но и а в на с к по не что как когда если мы вы я ты все всё было был была
        потом затем поэтому
        """,
        model="russian",
    ),
    # Scripts with full stops of their own, or none that is doubtful; English words come in between.
    "zh": _OTHER_SCRIPT,
    "ja": _OTHER_SCRIPT,
    "ko": _OTHER_SCRIPT,
    "he": _OTHER_SCRIPT,
    "ar": Words("د أ م ص ج ه"),
    "ur": Words(""),
    "hi": Words("डॉ प्रो श्री सं"),
    "am": Words(""),
    "hy": Words(""),
    "el": Words("κ κα π.χ δηλ κ.λπ κλπ βλ σελ", "αρ κεφ σελ", model="greek"),
}


@dataclass(frozen=True)
class Lexicon:
    """The words of a language as sets."""

    language: str
    abbreviations: frozenset[str]
    before_number: frozenset[str]
    starters: frozenset[str]
    ordinals: bool


def lexicon_of(language: str, abbreviations: tuple[str, ...] | None) -> Lexicon:
    """The words of a language, with other abbreviations where they are given."""
    words = words_of(language)
    own = words.abbreviations.split() if abbreviations is None else abbreviations
    sets = (frozenset(own), frozenset(words.before_number.split()), frozenset(words.starters.split()))
    return Lexicon(language, *sets, words.ordinals)


def words_of(language: str) -> Words:
    """The words of a language.

    Raises:
        UserError: the language is none of ours.
    """
    if language not in WORDS:
        raise UserError(f"segments: no words for the language {language!r}; there are {', '.join(WORDS)}")
    return WORDS[language]


def read_abbreviations(path: str | Path) -> tuple[str, ...]:
    """Abbreviations from a file, one per line, sorted: lower case, without the last full stop; "#" begins a remark.

    Raises:
        UserError: the file is not there, is no UTF-8, or holds a line of two words.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"abbreviations: cannot read {path}: {error}") from error
    found = set()
    for number, line in enumerate(lines, 1):
        word = line.partition("#")[0].strip()
        if len(word.split()) > 1:
            raise UserError(f"abbreviations: {path}, line {number}: one abbreviation per line, not {word!r}")
        found.add(word.lower().removesuffix("."))
    return tuple(sorted(found - {""}))
