"""French words and sentence frames of the story grammar: gender, elision and agreement are handled here."""

import re

from .base import Character, Language, Noun, TopicWords, Verb


def _nouns(*words: str) -> tuple[Noun, ...]:
    """``"f:carotte"`` -> feminine noun; ``"m:hamac!"`` marks an aspirated h (no elision)."""
    return tuple(Noun(word[2:].rstrip("!"), gender=word[0], elides=not word.endswith("!")) for word in words)


def _verbs(*pairs: str) -> tuple[Verb, ...]:
    """``"planter planté"`` -> infinitive and past with avoir, whose participle does not agree here."""
    return tuple(Verb(infinitive, f"a {participle}") for infinitive, participle in map(str.split, pairs))


CHARACTERS = {
    "lily": Character("Lily", "f"), "tom": Character("Tom", "m"), "anna": Character("Anna", "f"),
    "leo": Character("Léo", "m"), "mia": Character("Mia", "f"), "max": Character("Max", "m"),
    "sara": Character("Sara", "f"), "ben": Character("Ben", "m"), "emma": Character("Emma", "f"),
    "paul": Character("Paul", "m"), "julie": Character("Julie", "f"), "victor": Character("Victor", "m"),
    "rabbit": Character("le lapin", "m"), "cat": Character("le chat", "m"), "dog": Character("le chien", "m"),
    "mouse": Character("la souris", "f"), "frog": Character("la grenouille", "f"),
    "fox": Character("le renard", "m"), "duck": Character("le canard", "m"),
    "turtle": Character("la tortue", "f"), "bear": Character("l'ours", "m"),
    "squirrel": Character("l'écureuil", "m"), "bee": Character("l'abeille", "f"),
    "bird": Character("l'oiseau", "m"),
}  # fmt: skip

TOPICS = {
    "garden": TopicWords(
        objects=_nouns("f:carotte", "f:fleur", "f:tomate", "f:rose", "f:citrouille", "m:chou"),
        places=("dans le jardin", "près de la serre"),
        actions=_verbs("planter planté", "arroser arrosé", "cueillir cueilli"),
        problems=("la terre était trop sèche", "les escargots avaient faim"),
        successes=("une pluie douce est tombée", "le soleil a réchauffé la terre"),
        setbacks=("le gel a tué les plantes", "les mauvaises herbes ont tout envahi"),
    ),
    "kitchen": TopicWords(
        objects=_nouns("m:gâteau", "f:tarte", "m:biscuit", "f:crêpe", "m:muffin", "f:pizza"),
        places=("dans la cuisine", "à côté du four"),
        actions=_verbs("préparer préparé", "goûter goûté", "couper coupé"),
        problems=("il n'y avait plus de lait", "la pâte était trop dure"),
        successes=("le beurre a fondu doucement", "le four sentait très bon"),
        setbacks=("le sucre a brûlé", "la fumée a rempli le four"),
    ),
    "beach": TopicWords(
        objects=_nouns(
            "m:coquillage", "m:crabe", "m:seau", "m:cerf-volant", "f:étoile de mer", "f:serviette"
        ),
        places=("sur la plage", "au bord de la mer"),
        actions=_verbs("trouver trouvé", "porter porté", "laver lavé"),
        problems=("les vagues étaient très hautes", "le sable était trop chaud"),
        successes=("la marée est descendue", "la mer est devenue calme"),
        setbacks=("une grosse vague a tout emporté", "la marée a recouvert le sable"),
    ),
    "school": TopicWords(
        objects=_nouns("m:livre", "m:crayon", "f:règle", "m:cahier", "f:gomme", "m:cartable"),
        places=("dans la classe", "à l'école"),
        actions=_verbs("emprunter emprunté", "ranger rangé", "étiqueter étiqueté"),
        problems=("la leçon était très longue", "la maîtresse était sévère"),
        successes=("la maîtresse a expliqué la leçon", "la maîtresse a souri"),
        setbacks=("la maîtresse a puni la classe", "l'encre a taché le bureau"),
    ),
    "music": TopicWords(
        objects=_nouns("m:tambour", "f:guitare", "f:flûte", "m:piano", "m:violon", "f:trompette"),
        places=("au concert", "sur la scène"),
        actions=_verbs("accorder accordé", "écouter écouté", "essayer essayé"),
        problems=("la chanson était difficile", "l'orchestre était nerveux"),
        successes=("le public a applaudi très fort", "la mélodie était parfaite"),
        setbacks=("le public s'est moqué de la chanson", "les notes sonnaient faux"),
    ),
    "farm": TopicWords(
        objects=_nouns("f:vache", "m:cochon", "m:mouton", "f:chèvre", "m:âne", "m:veau"),
        places=("à la ferme", "dans l'étable"),
        actions=_verbs("nourrir nourri", "brosser brossé", "appeler appelé"),
        problems=("le foin était humide", "la barrière était fermée"),
        successes=("le fermier a ouvert la barrière", "du foin frais est arrivé"),
        setbacks=("le troupeau s'est enfui", "le fermier a fermé la grange"),
    ),
    "winter": TopicWords(
        objects=_nouns("f:luge", "m:patin", "f:écharpe", "f:moufle", "m:ski", "m:chandail"),
        places=("dans la neige", "sur la colline gelée"),
        actions=_verbs("apporter apporté", "décorer décoré", "sécher séché"),
        problems=("le vent était glacial", "la glace était trop fine"),
        successes=("les flocons ont cessé de tomber", "la glace est devenue solide"),
        setbacks=("une tempête a recouvert la colline", "la glace a craqué"),
    ),
    "space": TopicWords(
        objects=_nouns("f:fusée", "m:télescope", "m:robot", "m:satellite", "m:globe", "m:casque"),
        places=("à l'observatoire", "sur l'aire de lancement"),
        actions=_verbs("tester testé", "construire construit", "polir poli"),
        problems=("les nuages cachaient les étoiles", "l'ordinateur était lent"),
        successes=("la lune a éclairé le ciel", "le compte à rebours a commencé"),
        setbacks=("le compte à rebours s'est arrêté", "le signal a disparu"),
    ),
    "hospital": TopicWords(
        objects=_nouns(
            "m:pansement", "m:brancard", "m:thermomètre", "f:béquille", "m:stéthoscope", "f:pilule"
        ),
        places=("à l'hôpital", "chez le médecin"),
        actions=_verbs("utiliser utilisé", "tenir tenu", "demander demandé"),
        problems=("l'infirmière était occupée", "la fièvre était forte"),
        successes=("la fièvre a baissé", "le médecin a soigné la blessure"),
        setbacks=("la douleur a augmenté", "le malade s'est évanoui"),
    ),
    "fishing": TopicWords(
        objects=_nouns("m:poisson", "f:canne à pêche", "m:filet", "m:ver", "f:anguille", "m:hameçon"),
        places=("au lac", "au bord de la rivière"),
        actions=_verbs("attraper attrapé", "tirer tiré", "lancer lancé"),
        problems=("l'eau était boueuse", "le courant était fort"),
        successes=("la rivière est devenue claire", "la truite s'est approchée"),
        setbacks=("la ligne a cassé", "la truite a filé"),
    ),
    "clothes": TopicWords(
        objects=_nouns("f:robe", "f:chemise", "m:tablier", "f:jupe", "f:chaussette", "m:rideau"),
        places=("dans l'atelier de couture", "chez le tailleur"),
        actions=_verbs("coudre cousu", "repasser repassé", "plier plié"),
        problems=("le fil était trop court", "le tissu était froissé"),
        successes=("le tailleur a trouvé de la soie", "l'aiguille allait vite"),
        setbacks=("le tissu s'est déchiré", "les ciseaux ont abîmé la soie"),
    ),
    "birthday": TopicWords(
        objects=_nouns("m:cadeau", "f:bougie", "m:masque", "f:sucette", "m:ruban", "f:guirlande"),
        places=("à la fête d'anniversaire", "parmi les invités"),
        actions=_verbs("emballer emballé", "choisir choisi", "offrir offert"),
        problems=("les invités étaient timides", "la fête était trop bruyante"),
        successes=("tous les invités ont chanté", "la fête a enfin commencé"),
        setbacks=("tous les invités sont partis", "la fête a été annulée"),
    ),
    "pirates": TopicWords(
        objects=_nouns("m:coffre", "f:clé", "f:épée", "f:pièce", "f:couronne", "f:perle"),
        places=("sur le bateau des pirates", "sur l'île déserte"),
        actions=_verbs("voler volé", "enterrer enterré", "garder gardé"),
        problems=("le capitaine était fâché", "la grotte était sombre"),
        successes=("le capitaine a partagé le trésor", "les marins ont atteint l'île"),
        setbacks=("le navire a coulé", "les marins ont perdu le trésor"),
    ),
    "forest": TopicWords(
        objects=_nouns("m:champignon", "m:gland", "f:plume", "m:nid", "f:branche", "f:feuille"),
        places=("dans la forêt", "sous le vieux chêne"),
        actions=_verbs("ramasser ramassé", "examiner examiné", "sentir senti"),
        problems=("le sentier était étroit", "les arbres cachaient la lumière"),
        successes=("un hibou a montré le sentier", "une clairière est apparue"),
        setbacks=("un loup a bloqué le sentier", "le brouillard a caché les arbres"),
    ),
    "sports": TopicWords(
        objects=_nouns("f:balle", "f:raquette", "f:médaille", "m:trophée", "m:sifflet", "m:maillot"),
        places=("au stade", "sur le terrain"),
        actions=_verbs("gagner gagné", "soulever soulevé", "toucher touché"),
        problems=("l'autre équipe était rapide", "le match était dur"),
        successes=("l'équipe a marqué un but", "l'entraîneur a crié de joie"),
        setbacks=("l'équipe a perdu le match", "l'arbitre a arrêté le match"),
    ),
    "painting": TopicWords(
        objects=_nouns("f:affiche", "f:toile", "m:portrait", "f:palette", "m:paysage", "m:cadre"),
        places=("dans la galerie", "au musée"),
        actions=_verbs("peindre peint", "accrocher accroché", "admirer admiré"),
        problems=("les couleurs étaient pâles", "le modèle bougeait"),
        successes=("les couleurs sont devenues vives", "l'artiste a ajouté de l'or"),
        setbacks=("les couleurs ont bavé", "l'artiste a gâché le dessin"),
    ),
    "travel": TopicWords(
        objects=_nouns(
            "f:valise", "m:billet", "m:passeport", "f:boussole", "m:parapluie", "m:appareil photo"
        ),
        places=("à la gare", "à l'aéroport"),
        actions=_verbs("vérifier vérifié", "acheter acheté", "conserver conservé"),
        problems=("le train avait du retard", "la foule était immense"),
        successes=("le train est arrivé à l'heure", "l'avion a décollé"),
        setbacks=("le train est parti trop tôt", "le vol était complet"),
    ),
    "camping": TopicWords(
        objects=_nouns("f:tente", "f:lanterne", "m:matelas", "f:corde", "m:hamac!", "f:couverture"),
        places=("au camping", "près du feu de camp"),
        actions=_verbs("installer installé", "attacher attaché", "partager partagé"),
        problems=("les moustiques piquaient", "la nuit était froide"),
        successes=("le feu de camp crépitait doucement", "les moustiques se sont envolés"),
        setbacks=("le feu de camp s'est éteint", "les moustiques ont attaqué"),
    ),
    "market": TopicWords(
        objects=_nouns("f:pomme", "f:banane", "m:melon", "m:fromage", "f:orange", "m:œuf"),
        places=("au marché", "à l'épicerie"),
        actions=_verbs("vendre vendu", "peser pesé", "manger mangé"),
        problems=("le prix était trop élevé", "le marchand criait"),
        successes=("le marchand a baissé le prix", "les clients ont bien payé"),
        setbacks=("le marchand a fermé la boutique", "les clients se sont plaints"),
    ),
    "garage": TopicWords(
        objects=_nouns("f:voiture", "f:roue", "m:moteur", "m:camion", "m:vélo", "f:moto"),
        places=("au garage", "sur la route"),
        actions=_verbs("réparer réparé", "pousser poussé", "inspecter inspecté"),
        problems=("les freins étaient usés", "l'huile fuyait"),
        successes=("le mécanicien a changé l'huile", "les pédales tournaient de nouveau"),
        setbacks=("les freins ont lâché", "le réservoir a explosé"),
    ),
    "magic": TopicWords(
        objects=_nouns("f:baguette", "f:potion", "f:cape", "m:chaudron", "m:miroir", "f:bague"),
        places=("dans la tour du magicien", "chez la fée"),
        actions=_verbs("enchanter enchanté", "secouer secoué", "transformer transformé"),
        problems=("le sort était trop faible", "la sorcière était jalouse"),
        successes=("la fée a exaucé un vœu", "le sort a réussi"),
        setbacks=("la sorcière a jeté une malédiction", "le sort a échoué"),
    ),
    "mail": TopicWords(
        objects=_nouns("f:lettre", "m:colis", "m:timbre", "f:enveloppe", "f:carte postale", "m:journal"),
        places=("à la poste", "près de la boîte aux lettres"),
        actions=_verbs("envoyer envoyé", "recevoir reçu", "livrer livré"),
        problems=("l'adresse manquait", "le facteur était fatigué"),
        successes=("le facteur a sonné à la porte", "le courrier est arrivé tôt"),
        setbacks=("le courrier s'est perdu", "le facteur s'est mis en grève"),
    ),
    "cleaning": TopicWords(
        objects=_nouns("m:savon", "f:éponge", "m:balai", "m:chiffon", "f:serpillière", "m:peigne"),
        places=("dans la salle de bain", "dans la buanderie"),
        actions=_verbs("rincer rincé", "saisir saisi", "mouiller mouillé"),
        problems=("il y avait de la poussière partout", "le sol était collant"),
        successes=("le sol brillait de nouveau", "la saleté est partie"),
        setbacks=("la saleté est revenue", "le tuyau a inondé le sol"),
    ),
    "toys": TopicWords(
        objects=_nouns("f:poupée", "m:puzzle", "f:toupie", "f:marionnette", "m:cube", "f:bille"),
        places=("au magasin de jouets", "dans la salle de jeux"),
        actions=_verbs("prêter prêté", "collectionner collectionné", "échanger échangé"),
        problems=("les piles étaient vides", "l'étagère était trop haute"),
        successes=("le clown a raconté une blague", "les jeux ont commencé"),
        setbacks=("le clown a cassé l'étagère", "les jeux étaient finis"),
    ),
}

# y counts as a consonant here ("le yaourt"); no noun of the lexicon begins with a mute y.
_ELIDING = "aàâeéèêëiîïoôuûùœæh"


class French(Language):
    code = "fr"
    name = "French"
    characters = CHARACTERS
    topics = TOPICS
    times = ("Un jour", "Un matin", "Un soir", "Hier")
    openings = ("{time}, {C}| était {place}.", "{time}, {C}| attendait| {place}.")
    desires = (
        "{Il} voulait| {inf}| {un_o}.",
        "{Il} espérait| {inf}| {un_o}.",
        "{Il} a décidé| de {inf}| {un_o}.",
    )
    problems = ("Mais| {problem}.",)
    successes = ("Heureusement, {success}.", "Alors, {success}.", "Heureusement, {F}| est venu{Fe} aider.")
    setbacks = ("Hélas, {setback}.", "Alors, {setback}.", "Hélas, {F}| ne pouvait pas aider.")
    happy_endings = (
        "À la fin, {C}| {past}| {le_o}| et a ri.",
        "{C}| était {fier}| et a montré| {le_o}| à tout le monde.",
        "Enfin, {le_o}| était prêt{oe}, et| {C}| a dansé.",
    )
    sad_endings = (
        "À la fin, {C}| a perdu| {le_o}| et a pleuré.",
        "{C}| était triste| et a abandonné| {le_o}.",
        "Bientôt, {le_o}| avait disparu, et| {C}| est allé{e} au lit.",
    )

    def character_forms(self, character: Character) -> dict[str, str]:
        feminine = character.gender == "f"
        return {
            "Il": "Elle" if feminine else "Il",
            "e": "e" * feminine,
            "fier": "fière" if feminine else "fier",
        }

    def friend_forms(self, character: Character) -> dict[str, str]:
        return {"Fe": "e" if character.gender == "f" else ""}

    def noun_forms(self, noun: Noun) -> dict[str, str]:
        feminine = noun.gender == "f"
        definite = "la " if feminine else "le "
        if noun.elides and noun.singular[0] in _ELIDING:
            definite = "l'"
        return {
            "le_o": f"{definite}{noun.singular}",
            "un_o": f"{'une' if feminine else 'un'} {noun.singular}",
            "oe": "e" if feminine else "",
        }

    def verb_forms(self, verb: Verb) -> dict[str, str]:
        return {"inf": verb.infinitive, "past": verb.past}

    def finish(self, sentence: str) -> str:
        """Elide *de* before a vowel ("de emprunter" -> "d'emprunter")."""
        return re.sub(rf"\bde (?=[{_ELIDING[:-1]}])", "d'", sentence)
