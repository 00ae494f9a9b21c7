"""What addresses the reader and what only looks so: each sentence is a claim about one rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wronai import register

FORMAL = """
Może Pan złożyć wniosek przez internet.
Czy mogliby Państwo potwierdzić termin?
Pana wniosek wpłynął wczoraj i czeka na rozpatrzenie.
Pani zamówienie zostanie wysłane jutro.
Państwa zgłoszenie przekazano do działu technicznego.
Szanowna Pani, odpowiedź przyjdzie pocztą.
Szanowni Państwo, spotkanie odbędzie się we wtorek.
Szanowny Panie Profesorze, dziękuję za recenzję.
Proszę pana, to zajmie najwyżej godzinę.
Proszę pani, pociąg odjeżdża z peronu trzeciego.
Drodzy Państwo, zaczynamy za pięć minut.
Panie doktorze, wyniki są już gotowe.
Pani Anno, umowa czeka w sekretariacie.
Panie Tomaszu, termin minął wczoraj.
Dzień dobry Pani, paczka jest do odbioru.
Dziękuję panu za cierpliwość.
Powinna Pani zwrócić się do lekarza rodzinnego.
Powinien pan najpierw zapytać w urzędzie.
Musi pani zachować paragon.
Jeśli chce pan oszczędzić, warto kupić bilet wcześniej.
Gdyby zechciała Pani podać numer, sprawa poszłaby szybciej.
Niech pan spróbuje ponownie za godzinę.
Niech się Pani nie martwi, to minie.
Tutaj znajdą Państwo cennik i regulamin.
Mogą państwo zapłacić kartą lub gotówką.
Czy państwo potrzebują faktury?
Odsyłam Panu poprawiony tekst.
Chętnie pomogę Pani wybrać rower.
W Pana przypadku wystarczy jeden podpis.
W pana sytuacji lepsza będzie umowa na czas określony.
Zwrot pieniędzy otrzyma Pani w ciągu czternastu dni.
Jeżeli zapomniał Pan hasła, pomoże infolinia.
Kod, który wpisała Pani wczoraj, już wygasł.
Czy zna Pan Kraków?
Z góry dziękuję Państwu za odpowiedź.
Zależy to od Pani planów na lato.
Rozumiem, że jest pan rozczarowany.
Pański bilet jest ważny do północy.
Sens Pańskiej wypowiedzi pozostaje bez zmian.
Proszę wpisać numer rachunku w drugim polu.
Dokumenty proszę najpierw skserować.
Proszę o tym nie zapominać.
Prosimy nie dokarmiać ptaków.
Ile waży pani walizka, jeśli wolno spytać, i czy pani leci sama?
Kiedy pan wraca do domu?
Czego pani szuka?
Mam dla pani dobrą wiadomość: miejsce się znalazło.
Państwa firma nie musi składać deklaracji.
Zapłaci pan mniej, jeżeli bilet będzie kupiony wcześniej.
Nie musi się pan niczego obawiać.
Mógłby mi Pan przesłać skan?
Czy mam przez to rozumieć, że rezygnują Państwo z usługi?
Panie i panowie, za chwilę zgaśnie światło.
Gdyby miała pani pytania, nasza infolinia działa całą dobę.
Zwrócili Państwo uwagę na ważny szczegół.
Polecam pani zupę dnia.
Do Państwa dyspozycji jest sala na piętrze.
Wystarczy, że poda Pan PESEL.
Z przyjemnością odpowiem na pytania pana i pani.
„Szanowny Panie, dziękuję za list.”
„Czy może mi pani pomóc?”
Gdyby mieli Państwo pytania, jesteśmy do dyspozycji.
Kto panu o tym powiedział?
Co by pan wolał: kawę czy herbatę?
Warto, żeby pan zabrał parasol.
Zobaczą państwo zamek po lewej stronie.
Lekarz powie pani, jak dawkować lek.
Jak pani na imię?
Łączę pana z konsultantem.
Skoro lubi Pani kryminały, polecam powieści Krajewskiego.
O tym Pana poinformuję listownie.
Tego pan nie dostanie w sklepie.
Pani wniosek został rozpatrzony pozytywnie.
Państwo mogą zrezygnować w każdej chwili.
Szanowny Kliencie, zamówienie jest gotowe.
"""

INFORMAL = """
Możesz złożyć wniosek przez internet.
Wiesz już, od czego zacząć?
Jeśli chcesz, dorzucę przykład.
Jeszcze dziś dostaniesz odpowiedź.
Jak zrobiłeś ten wykres?
Skoro zaczęłaś wcześniej, reszta pójdzie szybko.
Zrobiłbyś to szybciej w arkuszu.
Gdybyś miała czas, warto zajrzeć do muzeum.
Żebyś zdążył, trzeba wyjść o szóstej.
Wystarczy, abyś podała imię.
Czyżbyś szukał czegoś tańszego?
Ty decydujesz.
Dla ciebie to drobiazg.
Lubią cię za cierpliwość.
Pomogę ci napisać list.
Tak ci się tylko wydaje.
Podam Ci trzy przykłady.
Zależy to od twojego budżetu.
Twój plan jest dobry, brakuje w nim tylko dat.
Moim zdaniem tobie też się uda.
Z tobą pójdzie szybciej.
Jesteś na dobrej drodze.
Powinieneś odpocząć.
Powinnaś zapytać lekarza.
Weź głęboki oddech.
Zrób przerwę na kawę.
Pamiętaj o kremie z filtrem.
Nie zapomnij o ładowarce.
Idź prosto, a potem skręć w lewo.
Bądź cierpliwa, takie rzeczy trwają.
Nie bądź dla siebie tak surowy.
Najpierw odetchnij, potem bądź stanowczy.
Jeśli coś pójdzie nie tak, bądź gotów zacząć od nowa.
Miej przy sobie dowód.
Wiedz, że to częsty błąd.
Jedz powoli.
Daj im czas.
Chodź wcześniej spać.
Stój prosto i patrz przed siebie.
Pij dużo wody i śpij osiem godzin.
Bierz leki o stałej porze.
Pisz krótkimi zdaniami.
Czytaj na głos, słuchaj uważnie.
Otwórz plik i włóż do niego nowy arkusz.
Połóż ciasto na blasze.
Sprawdź, czy drzwi są zamknięte.
Wybierz jeden kolor.
Zwróć uwagę na końcówkę.
Poproś o fakturę.
Zadzwoń do nich jutro.
Rób notatki.
Mów wolniej.
Leć już, bo się spóźnisz.
Wejdź na drugie piętro.
Trzymaj się prawej strony.
Uważaj na schody.
Załóż rękawiczki.
Wyślij zgłoszenie jeszcze dziś.
Wpisz hasło i kliknij przycisk.
Naciśnij klawisz Enter.
Wymieszaj mąkę z wodą, odstaw na kwadrans.
Pokrój cebulę w kostkę.
Posól wodę i obierz ziemniaki.
Umyj jabłka.
Ciasto przykryj ściereczką.
Do garnka wlej litr wody, podgrzej i zdejmij z ognia.
Po godzinie zajrzyj do piekarnika.
Ustaw budzik na szóstą.
Umów wizytę przez telefon.
Śledź uważnie kurs złotego.
Przekrój bułkę na pół.
Nie broń się przed zmianą.
Nie płacz, jutro będzie lepiej.
Myśl o czymś przyjemnym.
Nie bój się pytać.
Skup się na oddechu.
Zobacz, jak to robią inni.
Usuń stare pliki, zwiększ czcionkę, odśwież stronę.
Nie martw się na zapas.
Przyzwyczaj psa do smyczy.
Zostań w domu.
Doradź siostrze, żeby poszła do lekarza.
Krok 1 – Wyłącz zasilanie.
- Kup bilet
2) Zetrzyj ser na tarce.
Rozmiar 39, cena 120 zł. Odbierzesz je w piątek.
Weźże parasol.
KLIKNIJ TUTAJ
„Napisz do mnie, kiedy wrócisz.”
Słowo „tą” ci ujdzie, byle nie na maturze.
Dopisz na końcu: „Z poważaniem, Anna Nowak”.
Mięso przypraw solą i wstaw do piekarnika.
Rybę przypraw koperkiem.
Odmów grzecznie, ale stanowczo.
Przemyśl to jeszcze raz.
Nie pal w łóżku.
Streść tekst w trzech zdaniach.
Podlej kwiaty.
Nie lekceważ objawów.
Napisać ci przykład?
Ciekawe, jak ci idzie nauka.
Mógłbyś zacząć od spaceru.
Czy dałaś pani kwiaty?
Powiedz panu w okienku, że czekasz.
"""

MIXED = """
Może Pan złożyć wniosek, ale pamiętaj o podpisie.
Szanowna Pani, daj znać, czy termin pasuje.
Kliknij przycisk, a potem proszę wpisać hasło.
Proszę pana, twój bilet jest nieważny.
Jak chcesz, możemy przejść na ty, Panie Marku.
Powinna Pani odpocząć. Zrób sobie herbatę.
Czy mogliby Państwo poczekać? Zaraz ci odpowiem.
Dziękuję Państwu za uwagę, a tobie za pomoc.
Napisałaś dobry list, ale proszę sprawdzić datę.
Pański komputer wymaga aktualizacji, więc wyłącz go na noc.
Jeżeli nie otrzyma Pani odpowiedzi, zadzwoń pod numer infolinii.
Wiesz, czego pan szuka?
Wydrukuj formularz i niech Pan go podpisze.
Czy Pani to widzi? Spójrz na wykres.
Twoje konto zostało zablokowane. Prosimy wypełnić formularz.
Może pani usiąść, a ty, Zosiu, stań tutaj.
Tak, może Pan to sprawdzić, a jak wolisz, zadzwoń.
Dziękuję Ci za wiadomość. Pana wniosek został przyjęty.
Rozumiem Pani obawy, ale bądź spokojna.
Polecam pani zupę dnia, a tobie pierogi.
"""

NEUTRAL = """
Woda wrze w stu stopniach.
Wniosek można złożyć przez internet.
Należy zachować paragon przez dwa lata.
Pani z piekarni zna wszystkich klientów.
Zapytałem panią z okienka o godziny otwarcia.
Pan Tadeusz wrócił do Soplicowa.
W „Panu Tadeuszu” jest dwanaście ksiąg.
Pan Bóg kule nosi.
Pan Kowalski powiedział, że przyjdzie.
Sąsiadem jest pan Nowak.
Pani doktor wypisała receptę.
Ten pan stał przed nami.
Jakaś pani pytała o drogę.
Starsza pani wsiadła do tramwaju.
Pani zamknęła okno.
Pan młody spóźnił się do kościoła.
Kelner podał panu rachunek.
Na ławce siedziała pani w kapeluszu.
Państwo polskie odrodziło się w 1918 roku.
Państwo ma obowiązek chronić obywateli.
Państwa członkowskie przyjęły nową dyrektywę.
Państwa są podmiotami prawa międzynarodowego.
Głową państwa jest prezydent.
Wspólnie z Funduszem Skarbu Państwa prowadzono audyt.
Państwo Nowakowie mieszkają na parterze.
Instytut PAN ogłosił konkurs.
Piotruś Pan nie chciał dorosnąć.
Wieczerza Pańska to obraz z wielu kościołów.
Modlitwa uczy, że Pan jest blisko.
Proszę, oto trzy przykłady.
Proszę o chwilę cierpliwości.
Ci ludzie przyszli za wcześnie.
I ci, którzy wrócili, i ci, którzy zostali, mieli rację.
Dostali ją ci sami uczniowie.
Badacze ci doszli do innego wniosku.
Chwalą się ci turyści, którzy mieli przewodnika.
Trener powiedział: „Biegnij!”.
Mówi się „proszę pani”, a nie „proszę panią”.
Piosenka "Nie płacz, Ewka" ma już swoje lata.
Napis «Nie dotykaj» wisi nad gablotą.
– Chodź tutaj – powiedziała matka.\\n– Zaraz przyjdę – odparł syn.
Polecenie `zrób` nie istnieje.
Bądź co bądź to tylko gra.
Spotkania są bądź w poniedziałki, bądź w środy.
Potrzebny jest dowód bądź paszport.
Wniosek składa się pocztą, bądź też przez internet.
Mysz schowała się pod kosz, a klosz spadł na kapelusz.
Arkusz jest pusty, zwłaszcza druga strona, też niezapisana.
Nasz towarzysz kupił gulasz i haszysz, a wasz afisz.
Kasz jest kilka, nisz też.
Kraj ma nowy tramwaj, a maj był ciepły.
Dzisiaj i wczoraj, tutaj i zazwyczaj.
Mikołaj pije czaj, a lokaj zwyczaj ten zna.
Rozwój, pokój, spokój, napój i strój to rzeczowniki.
Wuj znalazł kij, a czyj, nie wiadomo.
Chcieli iść do sklepu i wieźć dzieci na wieś.
Trzeba nieść pomoc i znaleźć rozwiązanie.
Odpowiedź i wypowiedź to rzeczowniki żeńskie.
Sól rozpuszcza się w wodzie, a kurz osiada.
Śledź w oleju smakuje najlepiej z cebulą.
Broń palna wymaga pozwolenia.
Zestaw zawiera dwie śruby.
Myśl przewodnia jest prosta.
Projekty ustaw i umów trafiły do komisji.
Dzień zabaw kończy się pokazem spraw i przypraw.
Zwierz, lecz nie człowiek, choć wciąż znów ten sam.
To wręcz konieczne, także zakup narzędzi.
Zróbcie przerwę i napijcie się wody.
Macie rację, wasz plan jest dobry.
Zacznijmy od początku.
Zrobimy to jutro.
Myślę, że warto spróbować.
Napisałem list i wysłałam paczkę.
Niech żyje wolność.
Broń Boże nie o to chodzi.
Bóg zapłać za gościnę.
Szczegóły opisano dalej (patrz rozdział 3).
Łukasz i Tomasz są braćmi.
Andrzej Duj i Jan Dawaj grali w szachy.
Napisał do nas Jan Znajdź.
Adres: jan.zrob@weź.pl, strona https://www.zrób.pl/weź
Gdzieś coś się stało i ktoś to widział.
42
Toaleta dla pań jest na piętrze.
Panowie grali w karty, a panie rozmawiały.
Niech pan młody wejdzie pierwszy.
Kto jest tu panem?
Przyjechali ci z Poznania.
Zatrudniono obcokrajowców, ale ci często wyjeżdżają.
Wystaw i zabaw nie brakuje.
Przemyśl leży nad Sanem.
Skup owoców zaczyna się w lipcu.
Jowisz jest planetą, a Łotysz sąsiadem.
Kołłątaj i Mikołaj Rej.
Wymieszać składniki, odstawić na godzinę.
Uprasza się o ciszę.
"""


def lines(text: str) -> list[str]:
    return [line.replace("\\n", "\n") for line in text.strip().splitlines()]


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        (label, sentence)
        for label, text in zip(register.ADDRESSES, (FORMAL, INFORMAL, MIXED, NEUTRAL), strict=True)
        for sentence in lines(text)
    ],
)
def test_a_sentence_addresses_its_reader_as(label: str, sentence: str) -> None:
    assert register.detect(sentence) == label


def test_what_addresses_the_reader_may_stand_in_any_sentence() -> None:
    answer = "Wniosek składa się w urzędzie.\n\n1. Formularz jest na stronie.\n2. Termin mija w maju.\n{}"
    assert register.detect(answer.format("Opłaty nie ma.")) == "neutral"
    assert register.detect(answer.format("Opłatę uiści Pan w kasie.")) == "formal"
    assert register.detect(answer.format("Opłatę uiść w kasie.")) == "informal"


def test_a_quotation_counts_only_where_it_is_the_whole_text() -> None:
    assert register.detect("„Chodź do mnie”, zawołał „szanownych państwa” głos.") == "neutral"
    assert register.detect("„Napisał: «chodź do mnie» i uciekł.”") == "neutral"
    assert register.detect("„Chodź do mnie.”") == "informal"
    assert register.detect("„Szanowni Państwo!” – „Zaczynamy.”") == "formal"


@pytest.mark.parametrize("verb", ["róbmy", "róbcie", "czytajmy", "czytajcie", "idźmy", "weźcie", "piszmy", "bądźcie"])
def test_an_imperative_of_the_plural_is_not_informal(verb: str) -> None:
    assert register.detect(f"Od jutra {verb} wszystko inaczej.") == "neutral"


@given(st.text(alphabet='pan PANI państwo ci bądź weź , . ! ? „ ” – - \n " ` @ # 1 ustaw się ę'))
def test_any_text_has_one_of_the_four_labels(text: str) -> None:
    assert register.detect(text) in register.ADDRESSES


def test_a_loop_of_a_model_takes_no_longer_than_other_text() -> None:
    looped = "jedna pani dla pana bądź " * 20_000  # minutes, if each word looked at all the others
    assert register.detect(looped) in register.ADDRESSES


def test_precision_recall_and_number_of_each_label() -> None:
    gold = ["formal", "formal", "formal", "informal", "neutral"]
    found = ["formal", "formal", "neutral", "formal", "neutral"]
    assert register.score(gold, found) == {
        "formal": {"precision": 2 / 3, "recall": 2 / 3, "number": 3.0},
        "informal": {"precision": 0.0, "recall": 0.0, "number": 1.0},
        "mixed": {"precision": 0.0, "recall": 0.0, "number": 0.0},
        "neutral": {"precision": 0.5, "recall": 1.0, "number": 1.0},
    }


def test_labels_of_different_number_are_refused() -> None:
    with pytest.raises(ValueError, match="2 gold labels and 1 found"):
        register.score(["formal", "neutral"], ["formal"])


def test_a_label_that_is_none_of_the_four_is_refused() -> None:
    with pytest.raises(ValueError, match="polite: no such label"):
        register.score(["formal"], ["polite"])
