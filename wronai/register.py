"""How a Polish text addresses its reader: as pan or pani, as ty, as both, or not at all.

No dictionary stands behind this, only rules over words, closed lists where Polish is closed, and what stands next to a
word. Informal is:

- ty and twój in every form, „jesteś”, „powinieneś”; „ci” unless it points at men („ci ludzie”, „pracownicy ci”);
- a verb in -asz, -esz, -isz, -ysz, -łeś, -łaś or -byś, less the nouns that end so;
- an imperative: those in -aj, -uj, -ij, -yj by their ending, less the nouns that end so, the others by a list of stems
  and their prefixes. One that is a noun as well (umów, ustaw, broń, myśl) counts only after „nie”, or where its clause
  begins and something like an object follows; „bądź” only where it can not mean „or”. A verb with a capital within a
  sentence is a name.

Formal is:

- pan, pani, państwo where they mean the reader: called („szanowna pani”, „dziękuję panu”, „panie doktorze”), beside a
  verb of the present, the future or the conditional, after „niech”, „czy” or „jeśli”, or with a capital within a
  sentence. They are somebody else before a name or a title, after „ten”, „jakaś”, „starsza”; and with a small letter,
  or as a first word, before „z piekarni” and beside a verb of the past. A small „państwo” is a state unless it has a
  plural verb;
- pański in every form, a sentence that begins with „szanowny”, and „proszę” or „prosimy” with an infinitive, which is
  how one asks a pan, not a ty.

Not read: quotations, code and links unless the text has nothing else, and lines of dialogue where a story says who
speaks.

What it can not see: whom an imperative addresses in a story, speech without marks, „nigdy nie wiesz” said of anybody,
titles of works without marks, „Pani pakuje chleb” told of a third person in the present, a small „wniosek pani”, words
typed without Polish letters (jestes, zrob), and imperatives whose stem is in no list.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias, get_args

Address: TypeAlias = Literal["formal", "informal", "mixed", "neutral"]
ADDRESSES: tuple[Address, ...] = get_args(Address)


def detect(text: str) -> Address:
    """How `text` addresses its reader; depends on nothing but the text, and reads some megabytes a second."""
    formal = informal = False
    for sentence in _sentences(_own_words(text)):
        formal = formal or _is_formal(sentence)
        informal = informal or _is_informal(sentence)
        if formal and informal:
            return "mixed"
    return "formal" if formal else "informal" if informal else "neutral"


def score(gold: Sequence[str], found: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each of ADDRESSES its `precision`, its `recall`, and the `number` of texts that bear it in `gold`.

    A share of nothing is 0. Raises ValueError for lists of different length, and for a label that is none.
    """
    if len(gold) != len(found):
        raise ValueError(f"{len(gold)} gold labels and {len(found)} found ones; expected one of each for every text")
    if unknown := {*gold, *found}.difference(ADDRESSES):
        raise ValueError(f"{', '.join(sorted(unknown))}: no such label; expected {', '.join(ADDRESSES)}")
    scores: dict[str, dict[str, float]] = {}
    for label in ADDRESSES:
        expected, given = [one == label for one in gold], [one == label for one in found]
        right = sum(one and other for one, other in zip(expected, given, strict=True))
        scores[label] = {
            "precision": right / max(sum(given), 1),
            "recall": right / max(sum(expected), 1),
            "number": float(sum(expected)),
        }
    return scores


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_QUOTATION = re.compile(r"„[^„”“\"]*[”“\"]|“[^“”]*”|«[^«»]*»|»[^«»]*«|‚[^‚’‘]*[’‘]|\"[^\"\n]*\"")
_SPEECH = re.compile(r"^[ \t]*[—–-][ \t]*[^\W\d].*$", re.MULTILINE)
_SPEAKER = re.compile(
    r"^[ \t]*[—–-].*[—–-][ \t]*(?:powie|odpowie|rze[kc]|odrzek|zapyta|spyta|pyta|odpar|krzykn|wykrzykn|szepn|mrukn"
    r"|zawoł|doda|westchn|mówi|stwierdzi)\w*",
    re.MULTILINE,
)
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
_LINK = re.compile(r"\b(?:https?://|www\.)\S+|[^\s@]{1,64}@\S+")
_LETTER = re.compile(r"[^\W\d_]")


def _own_words(text: str) -> str:
    """`text` less what others say in it, each quotation a #; all of a text that is one quotation."""
    own = text
    if "`" in own:
        own = _CODE.sub(" ", own)
    if "@" in own or "://" in own or "www." in own:
        own = _LINK.sub(" ", own)
    for _ in range(3):  # the innermost of three goes first
        own, found = _QUOTATION.subn(" # ", own)
        if not found:
            break
    if not _LETTER.search(own):  # one quotation, or several: what these quote is still not theirs
        own = _QUOTATION.sub(" # ", text.strip()[1:-1])
    if not _LETTER.search(own):
        own = text
    return _SPEECH.sub("", own) if _SPEAKER.search(own) else own


_TOKEN = re.compile(r"[^\W\d_]+|[.!?…;:,()\n#–—•*→]|(?<!\S)-(?!\S)")  # numbers say nothing
_ENDS = frozenset(".!?…;:()\n")
_LONGEST = 150  # words of a sentence; what goes on is a loop of a model, and rules look through all of it
_OPENING = frozenset(".#–—•*→-")  # within a sentence, marks after which a word may begin another
_ABBREVIATIONS = _words(
    """
    al art dr ds gen hab im in inż kpt ks lek m mgr min np nr ok os p par pkt pl płk pn por poz prof pt r red rys s str
    sygn św tab tel tj tzn tzw ub ul ust woj zob
    """
)


def _sentences(text: str) -> Iterator[list[str]]:
    """The words and marks of each sentence, or of what stands between colons and brackets."""
    sentence: list[str] = []
    tokens = _TOKEN.findall(text)
    for token, following in itertools.zip_longest(tokens, tokens[1:], fillvalue="\n"):
        sentence.append(token)
        if token not in _ENDS and len(sentence) < _LONGEST:
            continue
        if token == "." and (following.islower() or (len(sentence) > 1 and sentence[-2] in _ABBREVIATIONS)):
            continue
        yield sentence
        sentence = []
    if sentence:
        yield sentence


def _lower(sentence: Sequence[str], at: int) -> str:
    """The word there in small letters; nothing beyond the ends."""
    return sentence[at].lower() if 0 <= at < len(sentence) else ""


def _opens(sentence: Sequence[str], at: int) -> bool:
    """Whether the word there may owe its capital to its place."""
    return at == 0 or sentence[at - 1] in _OPENING


_LIGHT = _words(
    "się nie już też także jednak teraz więc tylko zatem sobie to zawsze sam sama by mi mu nam im jej go ją je"
)


def _beside(sentence: Sequence[str], at: int, step: int) -> str:
    """The next word of weight on that side, in small letters."""
    at += step
    while _lower(sentence, at) in _LIGHT:
        at += step
    return _lower(sentence, at)


_TY = _words(
    """
    ty tyś ciebie cię tobie tobą twój twoja twoje twojego twojej twojemu twoją twoim twoimi twoich twoi twa twe twego
    twej twemu twym twymi twych twą jesteś powinieneś powinnaś winieneś winnaś żeś czyś boś jakżeś cóżeś gdzieżeś
    """
)
_SECOND_PERSON = re.compile(r".+[aeiy]sz|.+(?:łeś|łaś)|.*byś")
_NO_SECOND_PERSON = _words(
    """
    nasz wasz tomasz łukasz eliasz jonasz judasz mesjasz jeremiasz izajasz zachariasz tobiasz ozeasz kajfasz asz kasz
    pasz czasz gulasz kiermasz pałasz miszmasz rozgardiasz apasz patałasz gwasz hasz midrasz blamasz harnasz szałasz
    kozopasz mojżesz lemiesz flesz kesz wesz depesz rzesz deresz pielesz bangladesz marrakesz pradesz mesz klisz nisz
    cisz orkisz klawisz afisz finisz derwisz pastisz kisz zacisz kalisz ibisz plisz fetysz haszysz bakszysz mysz
    towarzysz współtowarzysz przybysz jidysz hołysz gołysz knysz berdysz jowisz łotysz małysz irtysz gilgamesz
    """
)

# Imperatives by their ending; in -ij and -yj the letter before it tells them from old genitives (linij, historyj).
_OPEN_IMPERATIVE = re.compile(
    r".+[au]j|.*(?:[bpw]|(?:^|[^aeiouyąęó])[lmn]|[śz]c|czc)ij|.*(?:[mżw]y|[ksźż]ry|rzy|szy)j|(?:u|przy)?tyj"
)
_NO_OPEN_IMPERATIVE = re.compile(
    r".*(?:rodzaj|tramwaj|wczoraj|onegdaj)|(?:nad|za)?zwyczaj|obyczaj|kraj|skraj|jaj|taj|obaj|dwaj|obydwaj|bodaj|bogdaj"
    r"|lokaj|kaj|niechaj|raj|hultaj|przełaj|gaj|maj|naj|mazgaj|ruczaj|czaj|tokaj|gronostaj|liszaj|haj|baj|rataj|mleczaj"
    r"|buhaj|mintaj|szaj|samuraj|zgraj|nahaj|hawaj|staj|korowaj|paj|dzisiaj|tutaj|mikołaj|dunaj|szanghaj|synaj|urugwaj"
    r"|paragwaj|ałtaj|bombaj|dubaj|mumbaj|kołłątaj|nikołaj|waj|wuj|niechluj|burżuj|tuj|ruj|chuj|fuj|szuj|ratatuj|wodopij|żmij|armij|szyj|pomyj"
)

# The others: these stems, alone or with a prefix.
_PREFIXES = "do|na|nad|nade|o|ob|obe|od|ode|po|pod|pode|prze|przed|przy|roz|roze|s|u|w|we|współ|wy|wz|z|za|ze|spo"
_STEMS = """
    idź jdź pójdź znajdź najdź jedź chodź jeźdź prowadź prawdź siądź siedź wiedź twierdź kładź gładź budź nudź brudź
    trudź sądź rządź sporządź pędź wędź szczędź oszczędź błądź przedź rodź ródź szkodź przeszkodź gódź łagodź słódź
    słodź chłódź chłodź odmłodź grodź gródź wódź sadź śledź cedź wstydź nagrodź nagródź bądź radź
    wiedz powiedz odpowiedz dowiedz jedz
    kręć wróć obróć rzuć płać leć świeć święć króć czyść puść umieść pomieść rozmieść streść prość ugość zagość chwyć
    kształć nęć zachęć zniechęć trać bogać nuć młóć pleć gnieć smuć kłóć skłóć mąć wierć gęść uiść pieść odtłuść
    weź wieź leź gryź woź obraź raź groź mroź zwęź zawęź
    łóż smaż waż zauważ lekceważ każ skaż natęż wytęż krąż dąż zdąż zbliż przybliż obniż zniż poniż zwilż nawilż wydłuż
    przedłuż służ pomóż wspomóż wzmóż strzeż leż mnóż mruż wiąż strzyż liż zmaż wymaż posmaż drąż obciąż odciąż przeciąż
    pręż skarż zwycięż wdróż śwież
    patrz wierz bierz pierz mierz twórz wtórz uderz zderz kurz nurz marz warz parz karz spójrz wietrz naostrz zaostrz
    wyostrz rozszerz poszerz zaburz wzburz oburz darz
    ucz licz kończ łącz znacz skocz tocz mocz bacz zobacz tłumacz walcz krocz starcz dostarcz ćwicz życz pożycz krzycz
    milcz płacz piecz zabezpiecz ubezpiecz tłucz wlecz lecz płucz skacz depcz szepcz głaszcz spłaszcz złuszcz niszcz
    zahacz racz świadcz tańcz męcz dręcz ręcz uwieńcz klęcz plącz wyklucz zaprzecz przyrzecz orzecz ogranicz odwdzięcz
    nasącz odsącz odrobacz
    mień ceń dzwoń chroń broń goń czyń stań zostań płyń wiń miń kłoń odsłoń zasłoń osłoń przesłoń przysłoń ożeń rań roń
    trwoń giń suń pluń
    ustaw wstaw nastaw odstaw zostaw pozostaw przedstaw przestaw popraw dopraw wpraw baw ujaw wyjaw zaciekaw ożyw odżyw
    pożyw krzyw załatw ułatw martw mów złów wyłów odnów wznów ponów zastanów postanów ustanów pozdrów
    rób zdób kup gub polub poślub skub dłub drap skrob pogłęb zagłęb ozięb
    złap wyłap połap przyłap stąp utop roztop zatop odczep doczep uczep klep przylep ulep zlep zalep syp cierp ścierp
    czerp zakop odkop krop kąp zaszczep wszczep trzep tup wątp
    łam kłam nakarm dokarm stłum zrozum uświadom powiadom zawiadom poskrom uruchom unieruchom znajom
    zwól osól posól dosól ogol pal wal chwal utrwal oddal ustal użal pożal myśl kreśl dziel strzel ściel miel piel tul
    czul znieczul rozczul skul chyl myl umil posil zasil wysil szkol zadowól świetl ośmiel zaokrągl módl
    lej grzej siej miej śmiej umiej klej wiej chciej szalej
    stój krój dój strój ukój uspokój zaspokój oswój przyswój podwój potrój rozbrój uzbrój
    nieś noś proś głoś gaś zawieś powieś wywieś odwieś rozwieś przewieś kuś duś paś trzęś koś zmuś przymuś
    rusz susz zwiększ powiększ upiększ zmniejsz pomniejsz ulepsz polepsz pogorsz podwyższ
"""
_CLOSED_IMPERATIVE = re.compile(rf"(?:{_PREFIXES})?(?:{'|'.join(_STEMS.split())})")
_NO_CLOSED_IMPERATIVE = _words(  # what stems and prefixes yield beside imperatives
    """
    wiedź powiedź odpowiedź zapowiedź wypowiedź spowiedź grodź wódź sadź powódź oleć lecz odrzecz roztocz naczyń ukrop
    łóż powietrz obaw oklep snuć bogać krzyw domów rozmów olej upal owal spaś zakłóć wykłóć pokłóć mocz wręcz poręcz
    obręcz naręcz oręcz sklep zakup okup nasyp wysyp pokrzyw rozłam odłam przegub maż karz popiel oracz rozstrój ustrój
    wystrój zastój zdwój
    """
)
_GENITIVES = _words(  # imperatives, or genitives plural, with which no sentence begins
    """
    ustaw postaw wystaw podstaw dostaw obstaw spraw napraw przypraw wypraw odpraw opraw zapraw zabaw umów odmów namów
    przemów wymów omów ozdób łap karm złącz łącz przymierz zamieść powstań
    """
)
_NOUNS = _words(  # imperatives, or nouns with which a sentence may begin
    """
    zestaw rozstaw zastaw przekrój krój wykrój strój nastrój postój niepokój śledź gładź broń pogoń myśl przemyśl
    przystań płacz tłumacz pieprz kurz sól pal klej wyrób przerób wykup pościel zaczep susz lej gub znacz dziw opal
    wypal przekop wykop zamieć łup
    """
)
_READINGS = {
    **dict.fromkeys(_TY, "ty"),
    **dict.fromkeys(_GENITIVES, "genitive"),
    **dict.fromkeys(_NOUNS, "noun"),
    **dict.fromkeys(("bój", "skup", "zwierz"), "reflexive"),
    **{word: word for word in ("ci", "bądź", "patrz")},
}


@functools.lru_cache(maxsize=1 << 16)
def _reading(word: str) -> str:
    """What makes `word`, in small letters, perhaps one of the second person singular; nothing where it can not be."""
    if word in _READINGS:
        return _READINGS[word]
    if _SECOND_PERSON.fullmatch(word):
        return "" if word in _NO_SECOND_PERSON else "verb"
    if _OPEN_IMPERATIVE.fullmatch(word):
        return "" if _NO_OPEN_IMPERATIVE.fullmatch(word) else "verb"
    if _CLOSED_IMPERATIVE.fullmatch(word):
        return "" if word in _NO_CLOSED_IMPERATIVE else "verb"
    return "verb" if word.endswith("że") and _reading(word[:-2]) == "verb" else ""


_AROUND = _words("się na w do od za o przy pod nad przed")  # which follow many nouns, too
_AGAIN = _words("jeszcze dobrze spokojnie na . !")  # after „przemyśl to”
_JOINING = _words("i a oraz lub albo ale więc potem następnie najpierw teraz dopiero zawsze ,")
_OBJECTS = _words(
    """
    sobie mi mu jej im nam go ją je tę wszystko wszystkie swój swoje swoją każdy każdą każde drobno cienko dokładnie
    uważnie powoli zawsze pozytywnie #
    """
)
_MEN = re.compile(  # plurals at which „ci” points
    r"ludzie|sami|inni|wszyscy|którzy|dwaj|trzej|czterej|obaj|pierwsi|biedni|młodzi|starzy|dobrzy|mali|goście|rodzice|co"
    r"|bracia|sąsiedzi|dorośli|eksperci|kandydaci"
    r"|(?!powie|płacze|skacze|kracze|.*(?:tworzy|czyści)).*"
    r"(?:owie|arze|(?<!b)ierze|orzy|cy|dzy|nci|iści|yści|ciele|acze|czeni|szeni|dzeni|alni|elni|ilni)"
)
_BEING = re.compile(r"sobą|ze|.*(?:[nwłrt][ya]|[kg][ia]|ów)")  # what one may be, after a comma and „bądź”
_PLACES = _words(
    "rozdział rozdz rys rysunek tabela tab str strona punkt pkt też także niżej wyżej art przypis załącznik"
)
_LORD = _words("boże bóg bogu panie")


def _is_informal(sentence: Sequence[str]) -> bool:
    """Whether a word of `sentence` is one of the second person singular where it stands."""
    return any(
        (reading := _reading(word.lower())) and _is_addressing(reading, sentence, at)
        for at, word in enumerate(sentence)
    )


def _is_addressing(reading: str, sentence: Sequence[str], at: int) -> bool:
    """Whether `reading` holds for the word there, by what stands around it."""
    if reading == "ty":
        return True
    if reading == "ci":
        return _is_dative(sentence, at)
    word, before, after = sentence[at], _lower(sentence, at - 1), _lower(sentence, at + 1)
    opens = _opens(sentence, at)
    if (word[0].isupper() and not word.isupper() and not opens) or {before, after} & _LORD:
        return False  # a name; „broń Boże”, „Bóg zapłać”
    if reading == "patrz":
        return after not in _PLACES
    if reading == "reflexive":
        return "się" in (before, after)
    if reading == "bądź":
        return _is_be(sentence, at)
    if reading == "verb":
        return True
    joins = before in _JOINING or (at == 1 and before.endswith(("nie", "wie", "rze", "o")))
    accusative = _is_accusative(after) or _is_accusative(_lower(sentence, at + 2))
    if before == "nie" or before in ("go", "ją", "je", "wszystko") or _is_accusative(before):
        return True
    if reading == "genitive":
        listed = after == "nie" or (after in ("i", "oraz", ",") and _lower(sentence, at + 2) in _GENITIVES)
        return (opens and not listed) or (joins and (accusative or after in _OBJECTS | _AROUND))
    again = after == "to" and _lower(sentence, at + 2) in _AGAIN
    return (opens or joins) and (accusative or again or after in _OBJECTS or (word.lower(), after) == ("myśl", "o"))


def _is_accusative(word: str) -> bool:
    return word.endswith("ę") and word != "się"


def _is_dative(sentence: Sequence[str], at: int) -> bool:
    """Whether „ci” is a form of ty: it leans on the word before it, and points at nobody."""
    before, after = _lower(sentence, at - 1), _lower(sentence, at + 1)
    if not before or before == "," or before in _OPENING - {"#"}:
        return False
    if after == ",":  # „ci, którym”
        return not _lower(sentence, at + 2).startswith(("któr", "co"))
    if at == 1 and _MEN.fullmatch(before):
        return False
    if before.endswith("li") and after in ("z", "ze", "od"):
        return False
    if before in ("a", "ale", "lecz", "niż") and any(word.endswith(("li", "ją")) for word in sentence[at + 1 : at + 4]):
        return False  # „ale ci wrócili”
    return sentence[at] == "Ci" or not _MEN.fullmatch(after)


def _is_be(sentence: Sequence[str], at: int) -> bool:
    """Whether „bądź” is „be”, not „or”."""
    before, after, opens = _lower(sentence, at - 1), _lower(sentence, at + 1), _opens(sentence, at)
    if after in ("co", "to", "też") or (not opens and sum(word.lower() == "bądź" for word in sentence) > 1):
        return False
    if before == ",":
        return _BEING.fullmatch(after) is not None
    return opens or before in ("nie", "i", "ale", "więc", "zawsze", "proszę", "prostu", "potem")


_FORMAL = {
    **dict.fromkeys(_words("pan pana panu panem panie pani panią panowie panów panom paniom panami"), "pan"),
    **dict.fromkeys(_words("państwo państwa państwu państwem"), "państwo"),
    **dict.fromkeys(
        _words("pański pańska pańskie pańskiego pańskiej pańskiemu pańską pańskim pańskimi pańskich"), "pański"
    ),
    **dict.fromkeys(_words("szanowny szanowna szanowni szanowne"), "szanowny"),
    **dict.fromkeys(_words("proszę prosimy"), "proszę"),
}
_NOMINATIVES = _words("pan pani państwo panowie panie")
_CALLS = _words(  # before a reader whom one calls so
    """
    szanowny szanowna szanowni szanowne szanownej szanownego szanownemu szanowną szanownych szanownym drogi droga drodzy
    drogie kochani łaskawy łaskawa wielmożny proszę prosimy dziękuję dziękujemy przepraszam przepraszamy zapraszam
    zapraszamy życzę życzymy gratuluję gratulujemy informuję informujemy zapewniam zapewniamy witam witamy zachęcam
    zachęcamy pozdrawiam rozumiem
    """
)
_TITLES = re.compile(
    r"(?:profesor|doktor|dyrektor|prezes|minist|premier|prezyden|kierowni|mecenas|redaktor|inżynier|pose?ł|senator"
    r"|burmistrz|wójt|sędzi|generał|pułkowni|kapitan|nauczyciel|sprząta|sprzedawc|ekspedient|recepcjonist|wychowawc"
    r"|kelner|bibliotekar|pielęgniar|sąsiad|młod)\w*|domu"
)
_VOCATIVE_TITLES = _words(
    """
    doktorze profesorze dyrektorze prezesie ministrze mecenasie redaktorze kierowniku inżynierze premierze prezydencie
    pośle senatorze burmistrzu wójcie sędzio generale pułkowniku kapitanie władzo
    """
)
_SOME = re.compile(  # before a pan who is somebody else
    r"t[aąę]|te[nj]|tego|temu|tym|tamt\w+|jaki(?:ś|egoś|emuś|mś|chś)|jakiejś|jakaś|jakąś|jakimś|pewien"
    r"|pewn(?:a|ego|ej|emu|ym|ą)|jed(?:en|na|nego|nej|nemu|nym|ną)|star(?:szy|sza|szego|szej|szemu|szym|szą|si|sze)"
    r"|młod\w+|nieznajom\w+|obc\w+|eleganck\w+|siw\w+|sympatyczn\w+|mił(?:y|a|ego|ej|emu|ym|ą)|grub\w+|wysok\w+"
    r"|szczupł\w+|uprzejm(?:y|a|ego|ej|emu|ym|ą)|dw(?:aj|óch|ie|u)|trzej|drug\w+|inn\w+|każd\w+|nasz\w*|mój|moja|ów|owa"
    r"|piotruś"
)
_VERBS = re.compile(  # third person singular of the present, the future and the conditional
    r"może|musi|powinien|powinna|chce|ma|jest|będzie|wie|zna|woli|potrafi|umie|zechce|raczy|otrzyma|dostanie|znajdzie"
    r"|zobaczy|zapłaci|płaci|poda|kliknie|wybierze|pójdzie|przyjdzie|pozna|straci|zyska|odzyska|uniknie|wypełni|złoży"
    r"|podpisze|wyśle|napisze|zadzwoni|poprosi|zapyta|sprawdzi|pamięta|widzi|słyszy|myśli|sądzi|uważa|pyta|mówi|pisze"
    r"|szuka|korzysta|mieszka|posiada|życzy|używa|lubi|pije|bierze|robi|zrobi|weźmie|czeka|poczeka|usłyszy|trafi|wróci"
    r"|odbierze|wejdzie|zacznie|skończy|przeczyta|doda|włoży|kupi|sprzeda|zarobi|oszczędzi|poczuje|ustawi|zapomni"
    r"|zostawi|obejrzy|pomoże|powie|wyjaśni|pokaże|doradzi|prześle|przekaże|ominie|dojdzie|dojedzie|pojedzie|.*(?:łby|łaby|[au]je|kłada|ywa|iera)"
)
_PLURAL_VERBS = re.compile(
    r"mogą|muszą|powinni|chcą|są|będą|wiedzą|wolą|zechcą|potrafią|życzą|znajdą|dostaną|widzą|.*(?:liby|łyby|[aeu]ją|dzą)"
)
_PAST = {"pan": "ł", "pani": "ła", "państwo": "li", "panowie": "li", "panie": "ły"}
_ASKING = _words(
    "czy jeśli jeżeli gdy gdyby kiedy skoro że żeby aby by jak co gdzie ile dlaczego kto kogo czego czym skąd"
)
_SUPPOSING = _words("jeśli jeżeli skoro gdyby żeby aby by")
_NO_VERBS = _words("wtedy kiedy teraz nagle potem tutaj zaraz później wczoraj dzisiaj jutro zawsze nigdy tylko")
_BELONGING = _words("z ze od w we przy na za spod obok przed pod po u i to")  # after a pan who is somebody else
_POSSESSED = _words("w na według wobec")  # before „pana przypadku”
_WRITING = _words(  # who writes so writes to somebody
    """
    mogę chcę chciałbym chciałabym proponuję radzę polecam zalecam sugeruję mam wyślę prześlę przygotuję odpowiem
    sprawdzę doradzam pomogę możemy chcemy mamy wyślemy prześlemy przygotowaliśmy oferujemy proszę prosimy dziękuję
    życzę przepraszam radziłbym radziłabym polecałbym polecałabym wyjaśnię opowiem pokażę podam powiem napiszę opiszę
    doradzę przypomnę wymienię podpowiem zależy
    """
)
_HOLY = re.compile(r"b[oó]g(?:a|u|iem)?|boż\w+|bibli\w+|psalm\w*|modlit\w+|anioł\w*|jezus\w*|chrystus\w*|ewangeli\w+")
_BEFORE_STATE = re.compile(r"skarb\w*|rad[aąęy]|radzie|głow\w+|racj\w+|bezpieczeństw\w+|ochron\w+|.*ego")
_AFTER_STATE = re.compile(r"(?!dane).*(?:skie|ckie|owe|ne|ące|skich|ckich|nych)|trzecie|członkow\w+|świata")
_POSSESSION = re.compile(r".*(?:[abcdfghjklłmnprstzćńśźż]|[nc]ie|dło)|dane|dokumenty|opinie|uwagi|potrzeby|dzieci")
_OF_THE_LORD = _words(
    """
    anioł anioła męka męki wieczerza roku dzień modlitwa dwór stół stołu łaska gest zmartwychwstania wniebowstąpienia
    przemienienia ofiarowania
    """
)
_INFINITIVE = re.compile(r".*(?:[aeiyuąó]ć|(?<!o)ść|źć|móc|biec|piec|strzec|wlec|tłuc|rzec|strzyc|prząc)")
_NO_INFINITIVES = _words(
    "pięć sześć dziesięć sieć nić chęć płeć pamięć śmierć część treść wieść powieść opowieść cześć"
)


def _is_formal(sentence: Sequence[str]) -> bool:
    """Whether a word of `sentence` addresses the reader as one addresses a pan."""
    for at, word in enumerate(sentence):
        form = _FORMAL.get(word.lower())
        if form is None:
            continue
        if form == "proszę":
            found = _asks(sentence, at)
        elif form == "szanowny":
            found = _opens(sentence, at)
        elif form == "pański":
            found = _OF_THE_LORD.isdisjoint((_lower(sentence, at - 1), _lower(sentence, at + 1)))
        else:
            found = _is_called(sentence, at) or _is_reader(sentence, at)
        if found:
            return True
    return False


def _asks(sentence: Sequence[str], at: int) -> bool:
    """Whether an infinitive follows „proszę” soon, as in „proszę o tym nie zapominać”."""
    if _lower(sentence, at + 1) == "o" and _lower(sentence, at + 2) != "tym":
        return False
    for word in sentence[at + 1 : at + 6]:
        if word in (",", "cię", "ciebie"):
            return False
        if _INFINITIVE.fullmatch(word) and word not in _NO_INFINITIVES:
            return True
    return False


def _name_after(sentence: Sequence[str], at: int) -> str:
    """The name or the title that follows, but no word in capitals, which is an office or a form."""
    after = sentence[at + 1] if at + 1 < len(sentence) else ""
    is_name = after[:1].isupper() and (len(after) == 1 or not after.isupper())
    return after if is_name or _TITLES.fullmatch(after) else ""


def _is_called(sentence: Sequence[str], at: int) -> bool:
    """Whether somebody is spoken to: „szanowna pani”, „dziękuję panu”, „panie doktorze”, „Pani Anno”."""
    form, before, after = (_lower(sentence, at + n) for n in (0, -1, 1))
    if after in _LORD:
        return False
    name, mark = _name_after(sentence, at), _lower(sentence, at + 2)
    if form == "pani" and name[:1].isupper() and name.endswith(("o", "u")):
        return True
    if form == "panie":
        if after in _VOCATIVE_TITLES or (name.endswith(("e", "u", "i")) and mark in ("", ",", "!", ".")):
            return True
        if _opens(sentence, at) and after == "i" and mark == "panowie":
            return True
    if before.startswith("szanown"):
        return True
    if before in _CALLS or (before == "dobry" and _lower(sentence, at - 2) in ("dzień", "wieczór")):
        return not name
    return _opens(sentence, at) and mark == "," and _TITLES.fullmatch(after) is not None


def _is_reader(sentence: Sequence[str], at: int) -> bool:
    """Whether a form of pan or państwo that is not called means the reader, not somebody else."""
    form, before, after = (_lower(sentence, at + n) for n in (0, -1, 1))
    opens, nominative = _opens(sentence, at), form in _NOMINATIVES
    capital = sentence[at][0].isupper() and not opens
    verbs = _VERBS if form in ("pan", "pani") else _PLURAL_VERBS
    follows_verb = nominative and verbs.fullmatch(_beside(sentence, at, -1)) is not None
    if sentence[at] == "PAN":
        return follows_verb  # else the academy
    if capital and follows_verb and after not in _LORD:
        return True  # whatever has a name after it: „zna Pan Kraków”
    some = _SOME.fullmatch(before) and not (before in ("tego", "tym", "temu") and (capital or nominative))
    if some or _name_after(sentence, at):
        return False
    if form.startswith("państw"):
        return follows_verb or _is_people(sentence, at)
    if form in ("panie", "panowie") and not capital:
        return (follows_verb and before in ("mogą", "muszą", "powinni", "chcą", "zechcą")) or (
            opens and after in (",", "!")
        )
    if follows_verb or "niech" in (before, _lower(sentence, at - 2)):
        return True
    if capital:
        return not any(_HOLY.fullmatch(word.lower()) for word in sentence)
    asks = not _ASKING.isdisjoint((before, _lower(sentence, at - 2))) and _reading(before) != "verb"
    if asks and "?" in sentence:
        return True
    if (at == 1 or _lower(sentence, at - 2) == "nie") and (before.endswith("ę") or before == "słucham"):
        return True  # „łączę pana”, „nie słyszę pani”
    if after in _BELONGING and not (opens and nominative and verbs.fullmatch(_beside(sentence, at, 1))):
        return False
    if opens:
        return after.isalpha() and not _beside(sentence, at, 1).endswith((_PAST.get(form, " "), "ący", "ąca"))
    return _is_small_reader(sentence, at)


def _is_small_reader(sentence: Sequence[str], at: int) -> bool:
    """Whether a small pan or pani within a sentence is the reader, where no verb before it says so."""
    form, before, after = _lower(sentence, at), _lower(sentence, at - 1), _beside(sentence, at, 1)
    if form in ("pan", "pani"):
        if after.endswith(_PAST[form]):
            return before in _SUPPOSING
        if before in _ASKING or _VERBS.fullmatch(after):
            return True
        if before.endswith(_PAST[form]) and _lower(sentence, at - 2) in _ASKING:
            return True  # „gdyby miała pani czas”
        begins = at == 1 or _lower(sentence, at - 2) in _ASKING | {"nie", "i", ","}
        if form == "pan" and begins and before.endswith(("a", "e", "i", "y")) and before not in _NO_VERBS:
            return True  # „zapłaci pan”
    if form in ("pana", "pani") and before in _POSSESSED and after.isalpha():
        return not after.endswith(("ła", "ło", "ły", "li"))
    return (form != "panem" or before == "z") and any(word.lower() in _WRITING for word in sentence)


def _is_people(sentence: Sequence[str], at: int) -> bool:
    """Whether państwo are people: a state has no plural verb, and people have no adjective after them."""
    form, before, after = (_lower(sentence, at + n) for n in (0, -1, 1))
    if _BEFORE_STATE.fullmatch(before) or _AFTER_STATE.fullmatch(after):
        return False
    verb = _beside(sentence, at, 1)
    if sentence[at][0].isupper() and not _opens(sentence, at):
        return not (form == "państwo" and _VERBS.fullmatch(verb))
    if form == "państwo":
        first = _opens(sentence, at) and verb.endswith("ą")  # „Państwo zobaczą”
        return first or (at == 1 and before.endswith("ą")) or _PLURAL_VERBS.fullmatch(verb) is not None
    if _opens(sentence, at):  # „Państwa wniosek”, not „Państwa regionu” or „Państwa są”
        return form == "państwa" and after not in _BELONGING and _POSSESSION.fullmatch(after) is not None
    return before in _POSSESSED | {"dla", "do", "od", "u", "z", "przez"} and any(
        word.lower() in _WRITING for word in sentence
    )
