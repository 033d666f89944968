"""German words and sentence frames of the story grammar: gender, case and word order are handled here."""

from dataclasses import dataclass

from .base import Character, Language, Noun, TopicWords, Verb


@dataclass(frozen=True)
class GermanNoun(Noun):
    """A noun with its accusative, which only weak masculine nouns tell from the nominative."""

    accusative: str = ""


@dataclass(frozen=True)
class GermanVerb(Verb):
    """A verb with its infinitive with *zu*, and the particle that its finite form leaves at the end."""

    zu_infinitive: str = ""
    particle: str = ""


def _nouns(*words: str) -> tuple[Noun, ...]:
    """``"f:Karotte"`` -> feminine noun; ``"m:Satellit:Satelliten"`` adds the accusative where it differs."""
    nouns = []
    for word in words:
        gender, singular, *accusative = word.split(":")
        nouns.append(
            GermanNoun(singular, gender=gender, accusative=accusative[0] if accusative else singular)
        )
    return tuple(nouns)


def _verbs(*pairs: str) -> tuple[Verb, ...]:
    """``"gießen goss"`` -> infinitive and past; ``"auf|lesen las"`` separates (las ... auf, aufzulesen)."""
    verbs = []
    for infinitive, past in map(str.split, pairs):
        particle, _, stem = infinitive.rpartition("|")
        zu_infinitive = f"{particle}zu{stem}" if particle else f"zu {stem}"
        verbs.append(GermanVerb(particle + stem, past, zu_infinitive=zu_infinitive, particle=particle))
    return tuple(verbs)


# Genders are German's own, so pronouns may differ from those of the other languages ("die Katze ... sie").
CHARACTERS = {
    "lily": Character("Lily", "f"), "tom": Character("Tom", "m"), "anna": Character("Anna", "f"),
    "leo": Character("Leo", "m"), "mia": Character("Mia", "f"), "max": Character("Max", "m"),
    "sara": Character("Sara", "f"), "ben": Character("Ben", "m"), "emma": Character("Emma", "f"),
    "paul": Character("Paul", "m"), "julie": Character("Julia", "f"), "victor": Character("Viktor", "m"),
    "rabbit": Character("der Hase", "m"), "cat": Character("die Katze", "f"),
    "dog": Character("der Hund", "m"), "mouse": Character("die Maus", "f"),
    "frog": Character("der Frosch", "m"), "fox": Character("der Fuchs", "m"),
    "duck": Character("die Ente", "f"), "turtle": Character("die Schildkröte", "f"),
    "bear": Character("der Bär", "m"), "squirrel": Character("das Eichhörnchen", "n"),
    "bee": Character("die Biene", "f"), "bird": Character("der Vogel", "m"),
}  # fmt: skip

# Successes and setbacks begin with their verb: it is the second element of the sentence, after the frame's
# "Zum Glück", "Dann" or "Leider". Problems follow "Aber", which leaves the order of a main clause as it is.
TOPICS = {
    "garden": TopicWords(
        objects=_nouns("f:Karotte", "f:Blume", "f:Tomate", "f:Rose", "m:Kürbis", "m:Kohlkopf"),
        places=("im Garten", "neben dem Gewächshaus"),
        actions=_verbs("pflanzen pflanzte", "gießen goss", "pflücken pflückte"),
        problems=("die Erde war zu trocken", "die Schnecken hatten Hunger"),
        successes=("fiel ein sanfter Regen", "wärmte die Sonne die Erde"),
        setbacks=("tötete der Frost die Pflanzen", "überwucherte das Unkraut alles"),
    ),
    "kitchen": TopicWords(
        objects=_nouns("m:Kuchen", "f:Torte", "m:Keks", "m:Pfannkuchen", "m:Muffin", "f:Pizza"),
        places=("in der Küche", "neben dem Ofen"),
        actions=_verbs("zu|bereiten bereitete", "kosten kostete", "schneiden schnitt"),
        problems=("es gab keine Milch mehr", "der Teig war zu hart"),
        successes=("schmolz die Butter langsam", "duftete der Ofen wunderbar"),
        setbacks=("verbrannte der Zucker", "füllte Rauch den Ofen"),
    ),
    "beach": TopicWords(
        objects=_nouns("f:Muschel", "f:Krabbe", "m:Eimer", "m:Drachen", "m:Seestern", "n:Handtuch"),
        places=("am Strand", "am Meer"),
        actions=_verbs("finden fand", "tragen trug", "waschen wusch"),
        problems=("die Wellen waren sehr hoch", "der Sand war zu heiß"),
        successes=("kam die Ebbe", "wurde das Meer ruhig"),
        setbacks=("riss eine große Welle alles fort", "bedeckte die Flut den Sand"),
    ),
    "school": TopicWords(
        objects=_nouns("n:Buch", "m:Bleistift", "n:Lineal", "n:Heft", "m:Radiergummi", "m:Schulranzen"),
        places=("im Klassenzimmer", "in der Schule"),
        actions=_verbs("aus|leihen lieh", "weg|räumen räumte", "beschriften beschriftete"),
        problems=("die Lektion war sehr lang", "die Lehrerin war streng"),
        successes=("erklärte die Lehrerin die Lektion", "lächelte die Lehrerin"),
        setbacks=("bestrafte die Lehrerin die Klasse", "befleckte die Tinte das Pult"),
    ),
    "music": TopicWords(
        objects=_nouns("f:Trommel", "f:Gitarre", "f:Flöte", "n:Klavier", "f:Geige", "f:Trompete"),
        places=("im Konzert", "auf der Bühne"),
        actions=_verbs("stimmen stimmte", "an|hören hörte", "aus|probieren probierte"),
        problems=("das Lied war schwierig", "das Orchester war nervös"),
        successes=("klatschte das Publikum laut", "war die Melodie vollkommen"),
        setbacks=("lachte das Publikum über das Lied", "klangen die Töne falsch"),
    ),
    "farm": TopicWords(
        objects=_nouns("f:Kuh", "n:Schwein", "n:Schaf", "f:Ziege", "m:Esel", "n:Kalb"),
        places=("auf dem Bauernhof", "im Stall"),
        actions=_verbs("füttern fütterte", "bürsten bürstete", "rufen rief"),
        problems=("das Heu war feucht", "das Gatter war geschlossen"),
        successes=("öffnete der Bauer das Gatter", "kam frisches Heu"),
        setbacks=("lief die Herde davon", "schloss der Bauer die Scheune"),
    ),
    "winter": TopicWords(
        objects=_nouns("m:Schlitten", "m:Schlittschuh", "m:Schal", "m:Fäustling", "m:Ski", "m:Pullover"),
        places=("im Schnee", "auf dem eisigen Hügel"),
        actions=_verbs("mit|bringen brachte", "verzieren verzierte", "trocknen trocknete"),
        problems=("der Wind war eiskalt", "die Eisdecke war zu dünn"),
        successes=("fielen keine Flocken mehr", "wurde die Eisdecke fest"),
        setbacks=("bedeckte ein Sturm den Hügel", "brach die Eisdecke"),
    ),
    "space": TopicWords(
        objects=_nouns("f:Rakete", "n:Teleskop", "m:Roboter", "m:Satellit:Satelliten", "m:Globus", "m:Helm"),
        places=("in der Sternwarte", "auf der Startrampe"),
        actions=_verbs("testen testete", "bauen baute", "polieren polierte"),
        problems=("die Wolken verdeckten die Sterne", "der Computer war langsam"),
        successes=("erhellte der Mond den Himmel", "begann der Countdown"),
        setbacks=("stoppte der Countdown", "verschwand das Signal"),
    ),
    "hospital": TopicWords(
        objects=_nouns("m:Verband", "f:Trage", "n:Thermometer", "f:Krücke", "n:Stethoskop", "f:Tablette"),
        places=("im Krankenhaus", "beim Arzt"),
        actions=_verbs("benutzen benutzte", "halten hielt", "verlangen verlangte"),
        problems=("die Krankenschwester war beschäftigt", "das Fieber war hoch"),
        successes=("sank das Fieber", "heilte der Arzt die Wunde"),
        setbacks=("wurde der Schmerz schlimmer", "fiel der Kranke in Ohnmacht"),
    ),
    "fishing": TopicWords(
        objects=_nouns("m:Fisch", "f:Angel", "n:Netz", "m:Wurm", "m:Aal", "m:Haken"),
        places=("am See", "am Fluss"),
        actions=_verbs("fangen fing", "ziehen zog", "werfen warf"),
        problems=("das Wasser war trüb", "die Strömung war stark"),
        successes=("wurde der Fluss klar", "kam die Forelle näher"),
        setbacks=("riss die Leine", "schwamm die Forelle davon"),
    ),
    "clothes": TopicWords(
        objects=_nouns("n:Kleid", "n:Hemd", "f:Schürze", "m:Rock", "f:Socke", "m:Vorhang"),
        places=("im Nähzimmer", "beim Schneider"),
        actions=_verbs("nähen nähte", "bügeln bügelte", "falten faltete"),
        problems=("der Faden war zu kurz", "der Stoff war zerknittert"),
        successes=("fand der Schneider etwas Seide", "lief die Nadel schnell"),
        setbacks=("riss der Stoff", "ruinierte die Schere die Seide"),
    ),
    "birthday": TopicWords(
        objects=_nouns("n:Geschenk", "f:Kerze", "f:Maske", "m:Lutscher", "f:Schleife", "f:Girlande"),
        places=("auf der Geburtstagsfeier", "unter den Gästen"),
        actions=_verbs("ein|packen packte", "aus|wählen wählte", "verschenken verschenkte"),
        problems=("die Gäste waren schüchtern", "die Feier war zu laut"),
        successes=("sangen alle Gäste", "begann endlich die Feier"),
        setbacks=("gingen alle Gäste", "wurde die Feier abgesagt"),
    ),
    "pirates": TopicWords(
        objects=_nouns("f:Truhe", "m:Schlüssel", "n:Schwert", "f:Münze", "f:Krone", "f:Perle"),
        places=("auf dem Piratenschiff", "auf der einsamen Insel"),
        actions=_verbs("stehlen stahl", "vergraben vergrub", "bewachen bewachte"),
        problems=("der Kapitän war zornig", "die Höhle war dunkel"),
        successes=("teilte der Kapitän den Schatz", "erreichten die Matrosen die Insel"),
        setbacks=("sank das Schiff", "verloren die Matrosen den Schatz"),
    ),
    "forest": TopicWords(
        objects=_nouns("m:Pilz", "f:Eichel", "f:Feder", "n:Nest", "m:Ast", "n:Blatt"),
        places=("im Wald", "unter der alten Eiche"),
        actions=_verbs("auf|lesen las", "untersuchen untersuchte", "riechen roch"),
        problems=("der Pfad war schmal", "die Bäume verdeckten das Licht"),
        successes=("zeigte eine Eule den Pfad", "tauchte eine Lichtung auf"),
        setbacks=("versperrte ein Wolf den Pfad", "verbarg der Nebel die Bäume"),
    ),
    "sports": TopicWords(
        objects=_nouns("m:Ball", "m:Schläger", "f:Medaille", "m:Pokal", "f:Pfeife", "n:Trikot"),
        places=("im Stadion", "auf dem Spielfeld"),
        actions=_verbs("gewinnen gewann", "heben hob", "berühren berührte"),
        problems=("die andere Mannschaft war schnell", "die Partie war schwer"),
        successes=("schoss die Mannschaft ein Tor", "jubelte der Trainer"),
        setbacks=("verlor die Mannschaft die Partie", "unterbrach der Schiedsrichter die Partie"),
    ),
    "painting": TopicWords(
        objects=_nouns("n:Plakat", "f:Leinwand", "n:Porträt", "f:Palette", "f:Landschaft", "m:Rahmen"),
        places=("in der Galerie", "im Museum"),
        actions=_verbs("malen malte", "auf|hängen hängte", "bewundern bewunderte"),
        problems=("die Farben waren blass", "das Modell bewegte sich"),
        successes=("wurden die Farben kräftig", "gab der Künstler etwas Gold dazu"),
        setbacks=("verliefen die Farben", "verdarb der Künstler die Zeichnung"),
    ),
    "travel": TopicWords(
        objects=_nouns("m:Koffer", "f:Fahrkarte", "m:Reisepass", "m:Kompass", "m:Regenschirm", "f:Kamera"),
        places=("am Bahnhof", "am Flughafen"),
        actions=_verbs("kontrollieren kontrollierte", "kaufen kaufte", "behalten behielt"),
        problems=("der Zug hatte Verspätung", "die Menge war riesig"),
        successes=("kam der Zug pünktlich an", "startete das Flugzeug"),
        setbacks=("fuhr der Zug zu früh ab", "war der Flug ausgebucht"),
    ),
    "camping": TopicWords(
        objects=_nouns("n:Zelt", "f:Laterne", "f:Matratze", "n:Seil", "f:Hängematte", "f:Decke"),
        places=("auf dem Campingplatz", "am Lagerfeuer"),
        actions=_verbs("auf|stellen stellte", "befestigen befestigte", "teilen teilte"),
        problems=("die Mücken stachen", "die Nacht war kalt"),
        successes=("knisterte das Lagerfeuer sanft", "flogen die Mücken davon"),
        setbacks=("ging das Lagerfeuer aus", "griffen die Mücken an"),
    ),
    "market": TopicWords(
        objects=_nouns("m:Apfel", "f:Banane", "f:Melone", "m:Käse", "f:Orange", "n:Ei"),
        places=("auf dem Markt", "im Lebensmittelladen"),
        actions=_verbs("verkaufen verkaufte", "wiegen wog", "essen aß"),
        problems=("der Preis war zu hoch", "der Händler schrie"),
        successes=("senkte der Händler den Preis", "zahlten die Kunden gut"),
        setbacks=("schloss der Händler den Laden", "beschwerten sich die Kunden"),
    ),
    "garage": TopicWords(
        objects=_nouns("n:Auto", "n:Rad", "m:Motor", "m:Lastwagen", "n:Fahrrad", "n:Motorrad"),
        places=("in der Werkstatt", "auf der Straße"),
        actions=_verbs("reparieren reparierte", "schieben schob", "prüfen prüfte"),
        problems=("die Bremsen waren abgenutzt", "das Öl lief aus"),
        successes=("wechselte der Mechaniker das Öl", "drehten sich die Pedale wieder"),
        setbacks=("versagten die Bremsen", "explodierte der Tank"),
    ),
    "magic": TopicWords(
        objects=_nouns("m:Zauberstab", "m:Zaubertrank", "m:Umhang", "m:Kessel", "m:Spiegel", "m:Ring"),
        places=("im Turm des Zauberers", "im Haus der Fee"),
        actions=_verbs("verzaubern verzauberte", "schütteln schüttelte", "verwandeln verwandelte"),
        problems=("der Zauber war zu schwach", "die Hexe war neidisch"),
        successes=("erfüllte die Fee einen Wunsch", "wirkte der Zauber"),
        setbacks=("sprach die Hexe einen Fluch", "misslang der Zauber"),
    ),
    "mail": TopicWords(
        objects=_nouns("m:Brief", "n:Paket", "f:Briefmarke", "m:Umschlag", "f:Postkarte", "f:Zeitung"),
        places=("auf der Post", "neben dem Briefkasten"),
        actions=_verbs("schicken schickte", "bekommen bekam", "liefern lieferte"),
        problems=("die Adresse fehlte", "der Briefträger war müde"),
        successes=("klingelte der Briefträger an der Tür", "kam die Post früh"),
        setbacks=("ging die Post verloren", "streikte der Briefträger"),
    ),
    "cleaning": TopicWords(
        objects=_nouns("f:Seife", "m:Schwamm", "m:Besen", "m:Lappen", "m:Mopp", "m:Kamm"),
        places=("im Badezimmer", "in der Waschküche"),
        actions=_verbs("spülen spülte", "ergreifen ergriff", "befeuchten befeuchtete"),
        problems=("der Staub war überall", "der Boden war klebrig"),
        successes=("glänzte der Boden wieder", "ging der Schmutz ab"),
        setbacks=("kam der Schmutz zurück", "überschwemmte das Rohr den Boden"),
    ),
    "toys": TopicWords(
        objects=_nouns("f:Puppe", "n:Puzzle", "m:Kreisel", "f:Marionette", "m:Würfel", "f:Murmel"),
        places=("im Spielzeugladen", "im Spielzimmer"),
        actions=_verbs("verleihen verlieh", "sammeln sammelte", "tauschen tauschte"),
        problems=("die Batterien waren leer", "das Regal war zu hoch"),
        successes=("erzählte der Clown einen Witz", "begannen die Spiele"),
        setbacks=("zerbrach der Clown das Regal", "waren die Spiele vorbei"),
    ),
}

_PRONOUN = {"m": "Er", "f": "Sie", "n": "Es"}
_NOMINATIVE = {"m": "der", "f": "die", "n": "das"}
_ACCUSATIVE = {"m": "den", "f": "die", "n": "das"}
_INDEFINITE_ACCUSATIVE = {"m": "einen", "f": "eine", "n": "ein"}


class German(Language):
    code = "de"
    name = "German"
    characters = CHARACTERS
    topics = TOPICS
    times = ("Eines Tages", "Eines Morgens", "Eines Abends", "Gestern")
    # {C} and {F} are subjects everywhere, so a name with the nominative article will do.
    openings = ("{time}| war| {C}| {place}.", "{time}| wartete| {C}| {place}.")
    desires = (
        "{Er} wollte| {einen_o}| {inf}.",
        "{Er} hoffte, {einen_o}| {zu_inf}.",
        "{Er} beschloss, {einen_o}| {zu_inf}.",
    )
    problems = ("Aber| {problem}.",)
    successes = ("Zum Glück| {success}.", "Dann| {success}.", "Zum Glück| kam| {F}| zu Hilfe.")
    setbacks = ("Leider| {setback}.", "Dann| {setback}.", "Leider| konnte| {F}| nicht helfen.")
    happy_endings = (
        "Am Ende| {past}| {C}| {den_o}| {ab}und lachte.",
        "{C}| war stolz| und zeigte allen| {den_o}.",
        "Endlich| war| {der_o}| bereit, und| {C}| tanzte.",
    )
    sad_endings = (
        "Am Ende| verlor| {C}| {den_o}| und weinte.",
        "{C}| war traurig| und ließ| {den_o}| zurück.",
        "Bald| war| {der_o}| fort, und| {C}| ging ins Bett.",
    )

    def character_forms(self, character: Character) -> dict[str, str]:
        return {"Er": _PRONOUN[character.gender]}

    def noun_forms(self, noun: GermanNoun) -> dict[str, str]:
        return {
            "der_o": f"{_NOMINATIVE[noun.gender]} {noun.singular}",
            "den_o": f"{_ACCUSATIVE[noun.gender]} {noun.accusative}",
            "einen_o": f"{_INDEFINITE_ACCUSATIVE[noun.gender]} {noun.accusative}",
        }

    def verb_forms(self, verb: GermanVerb) -> dict[str, str]:
        return {
            "inf": verb.infinitive,
            "zu_inf": verb.zu_infinitive,
            "past": verb.past,
            "ab": f"{verb.particle} " if verb.particle else "",
        }
