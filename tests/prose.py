"""Polish that several tests read, written for them."""

PROSE = (
    "Na skraju wsi stał dom, w którym od lat nikt nie mieszkał. Dzieci mówiły, że straszy tam o północy, ale "
    "stary młynarz śmiał się i powtarzał, że to tylko wiatr gra na potłuczonych szybach. Pewnej jesieni do domu "
    "wprowadziła się nauczycielka z miasta. Wymieniła okna, pobieliła ściany i zasadziła przy furtce krzak bzu, "
    "a w środę wieczorem zaprosiła wszystkich sąsiadów na ciasto ze śliwkami. Przyszli niemal wszyscy, bo każdy "
    "chciał sprawdzić, czy to prawda, że duch został i pomaga w kuchni."
)
VERSE = (
    "Nad rzeką wieczór stawia łódkę z cienia,\nw łódce się chwieje jeden żółty liść\n"
    "i nie wiadomo, czy to odpłynięcie,\nczy tylko woda uczy się, jak iść.\nStoję na brzegu z kieszenią kamieni\n"
    "i żadnym z nich nie umiem w ciszę trafić"
)
