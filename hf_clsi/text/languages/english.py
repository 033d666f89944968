"""English words and sentence frames of the story grammar (see base.py for what each table holds)."""

from .base import Character, Language, Noun, TopicWords, Verb


def _nouns(*words: str) -> tuple[Noun, ...]:
    return tuple(Noun(word) for word in words)


def _verbs(*pairs: str) -> tuple[Verb, ...]:
    """``"plant planted"`` -> infinitive and past; a particle goes with both (``"set_up set_up"``)."""
    return tuple(Verb(*(part.replace("_", " ") for part in pair.split())) for pair in pairs)


CHARACTERS = {
    "lily": Character("Lily", "f"), "tom": Character("Tom", "m"), "anna": Character("Anna", "f"),
    "leo": Character("Leo", "m"), "mia": Character("Mia", "f"), "max": Character("Max", "m"),
    "sara": Character("Sara", "f"), "ben": Character("Ben", "m"), "emma": Character("Emma", "f"),
    "paul": Character("Paul", "m"), "julie": Character("Julie", "f"), "victor": Character("Victor", "m"),
    "rabbit": Character("the rabbit", "m"), "cat": Character("the cat", "m"),
    "dog": Character("the dog", "m"), "mouse": Character("the mouse", "f"),
    "frog": Character("the frog", "f"), "fox": Character("the fox", "m"), "duck": Character("the duck", "m"),
    "turtle": Character("the turtle", "f"), "bear": Character("the bear", "m"),
    "squirrel": Character("the squirrel", "m"), "bee": Character("the bee", "f"),
    "bird": Character("the bird", "m"),
}  # fmt: skip

TOPICS = {
    "garden": TopicWords(
        objects=_nouns("carrot", "flower", "tomato", "rose", "pumpkin", "cabbage"),
        places=("in the garden", "near the greenhouse"),
        actions=_verbs("plant planted", "water watered", "pick picked"),
        problems=("the ground was too dry", "the snails were hungry"),
        successes=("a soft rain fell", "the sun warmed the soil"),
        setbacks=("the frost killed the plants", "weeds invaded everything"),
    ),
    "kitchen": TopicWords(
        objects=_nouns("cake", "pie", "cookie", "pancake", "muffin", "pizza"),
        places=("in the kitchen", "beside the oven"),
        actions=_verbs("prepare prepared", "taste tasted", "cut cut"),
        problems=("the milk ran out", "the dough was too hard"),
        successes=("the butter melted slowly", "the oven smelled wonderful"),
        setbacks=("the sugar burned", "smoke filled the oven"),
    ),
    "beach": TopicWords(
        objects=_nouns("shell", "crab", "bucket", "kite", "starfish", "towel"),
        places=("on the beach", "by the sea"),
        actions=_verbs("find found", "carry carried", "wash washed"),
        problems=("the waves were very high", "the sand was too hot"),
        successes=("the tide went out", "the sea became calm"),
        setbacks=("a big wave took everything", "the tide covered the sand"),
    ),
    "school": TopicWords(
        objects=_nouns("book", "pencil", "ruler", "notebook", "eraser", "schoolbag"),
        places=("in the classroom", "at school"),
        actions=_verbs("borrow borrowed", "put_away put_away", "label labeled"),
        problems=("the lesson was very long", "the teacher was strict"),
        successes=("the teacher explained the lesson", "the teacher smiled"),
        setbacks=("the teacher punished the class", "the ink stained the desk"),
    ),
    "music": TopicWords(
        objects=_nouns("drum", "guitar", "flute", "piano", "violin", "trumpet"),
        places=("at the concert", "on the stage"),
        actions=_verbs("tune tuned", "listen_to listened_to", "try tried"),
        problems=("the song was difficult", "the orchestra was nervous"),
        successes=("the audience clapped loudly", "the melody was perfect"),
        setbacks=("the audience laughed at the song", "the notes sounded wrong"),
    ),
    "farm": TopicWords(
        objects=_nouns("cow", "pig", "sheep", "goat", "donkey", "calf"),
        places=("on the farm", "in the stable"),
        actions=_verbs("feed fed", "brush brushed", "call called"),
        problems=("the hay was damp", "the gate was shut"),
        successes=("the farmer opened the gate", "fresh hay arrived"),
        setbacks=("the herd ran away", "the farmer closed the barn"),
    ),
    "winter": TopicWords(
        objects=_nouns("sled", "skate", "scarf", "mitten", "ski", "sweater"),
        places=("in the snow", "on the icy hill"),
        actions=_verbs("bring brought", "decorate decorated", "dry dried"),
        problems=("the wind was freezing", "the ice was too thin"),
        successes=("the snowflakes stopped falling", "the ice became solid"),
        setbacks=("a storm covered the hill", "the ice cracked"),
    ),
    "space": TopicWords(
        objects=_nouns("rocket", "telescope", "robot", "satellite", "globe", "helmet"),
        places=("at the observatory", "on the launch pad"),
        actions=_verbs("test tested", "build built", "polish polished"),
        problems=("the clouds hid the stars", "the computer was slow"),
        successes=("the moon lit the sky", "the countdown began"),
        setbacks=("the countdown stopped", "the signal disappeared"),
    ),
    "hospital": TopicWords(
        objects=_nouns("bandage", "stretcher", "thermometer", "crutch", "stethoscope", "pill"),
        places=("at the hospital", "at the doctor's office"),
        actions=_verbs("use used", "hold held", "ask_for asked_for"),
        problems=("the nurse was busy", "the fever was high"),
        successes=("the fever went down", "the doctor healed the wound"),
        setbacks=("the pain got worse", "the patient fainted"),
    ),
    "fishing": TopicWords(
        objects=_nouns("fish", "rod", "net", "worm", "eel", "hook"),
        places=("at the lake", "by the river"),
        actions=_verbs("catch caught", "pull pulled", "throw threw"),
        problems=("the water was muddy", "the current was strong"),
        successes=("the river became clear", "the trout came closer"),
        setbacks=("the line broke", "the trout swam away"),
    ),
    "clothes": TopicWords(
        objects=_nouns("dress", "shirt", "apron", "skirt", "sock", "curtain"),
        places=("in the sewing room", "at the tailor's shop"),
        actions=_verbs("sew sewed", "iron ironed", "fold folded"),
        problems=("the thread was too short", "the fabric was wrinkled"),
        successes=("the tailor found some silk", "the needle moved quickly"),
        setbacks=("the fabric tore", "the scissors ruined the silk"),
    ),
    "birthday": TopicWords(
        objects=_nouns("gift", "candle", "mask", "lollipop", "ribbon", "garland"),
        places=("at the birthday party", "among the guests"),
        actions=_verbs("wrap wrapped", "choose chose", "give gave"),
        problems=("the guests were shy", "the party was too noisy"),
        successes=("all the guests sang", "the party began at last"),
        setbacks=("all the guests left", "the party was canceled"),
    ),
    "pirates": TopicWords(
        objects=_nouns("chest", "key", "sword", "coin", "crown", "pearl"),
        places=("on the pirate ship", "on the desert island"),
        actions=_verbs("steal stole", "bury buried", "guard guarded"),
        problems=("the captain was angry", "the cave was dark"),
        successes=("the captain shared the treasure", "the sailors reached the island"),
        setbacks=("the ship sank", "the sailors lost the treasure"),
    ),
    "forest": TopicWords(
        objects=_nouns("mushroom", "acorn", "feather", "nest", "branch", "leaf"),
        places=("in the forest", "under the old oak"),
        actions=_verbs("pick_up picked_up", "examine examined", "smell smelled"),
        problems=("the path was narrow", "the trees hid the light"),
        successes=("an owl showed the path", "a clearing appeared"),
        setbacks=("a wolf blocked the path", "the fog hid the trees"),
    ),
    "sports": TopicWords(
        objects=_nouns("ball", "racket", "medal", "trophy", "whistle", "jersey"),
        places=("at the stadium", "on the field"),
        actions=_verbs("win won", "lift lifted", "touch touched"),
        problems=("the other team was fast", "the match was hard"),
        successes=("the team scored a goal", "the coach cheered"),
        setbacks=("the team lost the match", "the referee stopped the match"),
    ),
    "painting": TopicWords(
        objects=_nouns("poster", "canvas", "portrait", "palette", "landscape", "frame"),
        places=("in the gallery", "at the museum"),
        actions=_verbs("paint painted", "hang hung", "admire admired"),
        problems=("the colors were pale", "the model was moving"),
        successes=("the colors became bright", "the artist added some gold"),
        setbacks=("the colors ran", "the artist spoiled the drawing"),
    ),
    "travel": TopicWords(
        objects=_nouns("suitcase", "ticket", "passport", "compass", "umbrella", "camera"),
        places=("at the station", "at the airport"),
        actions=_verbs("check checked", "buy bought", "keep kept"),
        problems=("the train was delayed", "the crowd was huge"),
        successes=("the train arrived on time", "the plane took off"),
        setbacks=("the train left too early", "the flight was full"),
    ),
    "camping": TopicWords(
        objects=_nouns("tent", "lantern", "mattress", "rope", "hammock", "blanket"),
        places=("at the campsite", "by the campfire"),
        actions=_verbs("set_up set_up", "attach attached", "share shared"),
        problems=("the mosquitoes were biting", "the night was cold"),
        successes=("the campfire crackled gently", "the mosquitoes flew off"),
        setbacks=("the campfire went out", "the mosquitoes attacked"),
    ),
    "market": TopicWords(
        objects=_nouns("apple", "banana", "melon", "cheese", "orange", "egg"),
        places=("at the market", "in the grocery store"),
        actions=_verbs("sell sold", "weigh weighed", "eat ate"),
        problems=("the price was too high", "the merchant was shouting"),
        successes=("the merchant lowered the price", "the customers paid well"),
        setbacks=("the merchant closed the shop", "the customers complained"),
    ),
    "garage": TopicWords(
        objects=_nouns("car", "wheel", "engine", "truck", "bicycle", "motorcycle"),
        places=("in the garage", "on the road"),
        actions=_verbs("fix fixed", "push pushed", "inspect inspected"),
        problems=("the brakes were worn", "the oil was leaking"),
        successes=("the mechanic changed the oil", "the pedals turned again"),
        setbacks=("the brakes failed", "the tank exploded"),
    ),
    "magic": TopicWords(
        objects=_nouns("wand", "potion", "cape", "cauldron", "mirror", "ring"),
        places=("in the wizard's tower", "at the fairy's house"),
        actions=_verbs("enchant enchanted", "shake shook", "transform transformed"),
        problems=("the spell was too weak", "the witch was jealous"),
        successes=("the fairy granted a wish", "the spell worked"),
        setbacks=("the witch cast a curse", "the spell failed"),
    ),
    "mail": TopicWords(
        objects=_nouns("letter", "parcel", "stamp", "envelope", "postcard", "newspaper"),
        places=("at the post office", "near the mailbox"),
        actions=_verbs("send sent", "receive received", "deliver delivered"),
        problems=("the address was missing", "the mailman was tired"),
        successes=("the mailman rang the doorbell", "the mail came early"),
        setbacks=("the mail got lost", "the mailman went on strike"),
    ),
    "cleaning": TopicWords(
        objects=_nouns("soap", "sponge", "broom", "cloth", "mop", "comb"),
        places=("in the bathroom", "in the laundry room"),
        actions=_verbs("rinse rinsed", "grab grabbed", "wet wet"),
        problems=("the dust was everywhere", "the floor was sticky"),
        successes=("the floor shone again", "the dirt came off"),
        setbacks=("the dirt came back", "the pipe flooded the floor"),
    ),
    "toys": TopicWords(
        objects=_nouns("doll", "puzzle", "spinning top", "puppet", "cube", "marble"),
        places=("in the toy store", "in the playroom"),
        actions=_verbs("lend lent", "collect collected", "trade traded"),
        problems=("the batteries were dead", "the shelf was too tall"),
        successes=("the clown told a joke", "the games began"),
        setbacks=("the clown broke the shelf", "the games were over"),
    ),
}  # "a soap" and "a cheese" are said of a bar and of a wheel in children's stories

_VOWEL_SOUND = "aeiou"


class English(Language):
    code = "en"
    name = "English"
    characters = CHARACTERS
    topics = TOPICS
    times = ("One day", "One morning", "One evening", "Yesterday")
    openings = ("{time}, {C}| was {place}.", "{time}, {C}| was waiting| {place}.")
    desires = (
        "{He} wanted| to {inf}| {an_o}.",
        "{He} hoped| to {inf}| {an_o}.",
        "{He} decided| to {inf}| {an_o}.",
    )
    problems = ("But| {problem}.",)
    successes = ("Luckily, {success}.", "Then| {success}.", "Luckily, {F}| came to help.")
    setbacks = ("Sadly, {setback}.", "Then| {setback}.", "Sadly, {F}| could not help.")
    happy_endings = (
        "In the end, {C}| {past}| {the_o}| and laughed.",
        "{C}| was proud| and showed| {the_o}| to everyone.",
        "At last, {the_o}| was ready, and| {C}| danced.",
    )
    sad_endings = (
        "In the end, {C}| lost| {the_o}| and cried.",
        "{C}| was sad| and left| {the_o}| behind.",
        "Soon, {the_o}| was gone, and| {C}| went to bed.",
    )

    def character_forms(self, character: Character) -> dict[str, str]:
        return {"He": "She" if character.gender == "f" else "He"}

    def noun_forms(self, noun: Noun) -> dict[str, str]:
        article = "an" if noun.singular[0] in _VOWEL_SOUND else "a"
        return {"an_o": f"{article} {noun.singular}", "the_o": f"the {noun.singular}"}

    def verb_forms(self, verb: Verb) -> dict[str, str]:
        return {"inf": verb.infinitive, "past": verb.past}
