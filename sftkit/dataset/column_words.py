"""What columns are called: the words that hint at the part a column plays, in many languages."""

_QUESTION = """
question questions query prompt instruction instructions ask asked request user human input
frage fragen anfrage eingabe pregunta consulta entrada demande domanda richiesta vraag pergunta
fråga spørgsmål spørsmål kysymys pytanie otázka kérdés întrebare soru câu_hỏi swali вопрос питання
ερώτηση سؤال שאלה प्रश्न প্রশ্ন 问题 問題 質問 问 問 질문
"""
_ANSWER = """
answer answers reply response completion output target assistant bot gpt chosen solution
antwort antworten ausgabe respuesta salida réponse reponse risposta antwoord resposta svar vastaus
odpowiedź odpoveď odpověď válasz răspuns cevap yanıt jibu trả_lời ответ відповідь απάντηση جواب
إجابة תשובה उत्तर উত্তর 答案 回答 答 응답 답변
"""
_TEXT = """
text texts sentence review content document comment message tweet post body title headline
description utterance passage satz beitrag kommentar beschreibung texto frase reseña texte phrase
avis testo recensione tekst текст отзыв 文本 文章 テキスト 텍스트
"""
_LABEL = """
label labels class classes category categories topic intent sentiment tag stars emotion chapter
urgency polarity klasse kategorie etikett thema stimmung etiqueta categoría clase sentimiento
étiquette catégorie classe categoria etichetta метка категория класс 标签 類別 类别 ラベル 레이블
"""
_SCORE = """
score scores rating similarity value grade points regression punkte wertung bewertung puntuación
valor punteggio nota оценка 分数 点数 점수
"""
_META = """
id ids uuid guid index idx nr no number row line split group place source origin url link date
time timestamp created updated year month day lang language locale license licence author name
file filename path hash key version age
"""
QUESTION_WORDS = frozenset(_QUESTION.split())
ANSWER_WORDS = frozenset(_ANSWER.split())
TEXT_WORDS = frozenset(_TEXT.split())
LABEL_WORDS = frozenset(_LABEL.split())
SCORE_WORDS = frozenset(_SCORE.split())
META_WORDS = frozenset(_META.split())
"""Words of columns that describe a row and are not learned from."""
NAMED_WORDS = QUESTION_WORDS | ANSWER_WORDS | TEXT_WORDS | LABEL_WORDS | SCORE_WORDS
