#include "cli/contact_sheet.h"

#include "common/file.h"
#include "common/plural.h"

#include <stdio.h>
#include <string.h>

#define PAGE_MAX_BYTES (128u << 20)
#define PROMPT_SHOWN_BYTES 2000

static const char style[] =
    ":root{color-scheme:light dark;--bg:#f6f5f2;--card:#fff;--ink:#1d1d1f;--soft:#6b6b70;"
    "--line:#e4e2dc;--bad:#b3261e;--accent:#3558c8}"
    "@media(prefers-color-scheme:dark){:root{--bg:#151517;--card:#1f1f23;--ink:#ececf0;"
    "--soft:#9a9aa3;--line:#303036;--bad:#ff8a80;--accent:#9db4ff}}"
    "*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);"
    "font:15px/1.45 system-ui,-apple-system,'Segoe UI',sans-serif}"
    "header,nav,footer{max-width:1500px;margin:0 auto;padding:1.2rem 1.4rem}"
    "h1{font-size:1.35rem;margin:0 0 .2rem;font-weight:650}header p{margin:0;color:var(--soft)}"
    "main{max-width:1500px;margin:0 auto;padding:0 1.4rem;display:grid;gap:1rem;"
    "grid-template-columns:repeat(auto-fill,minmax(220px,1fr))}"
    "article{background:var(--card);border:1px solid var(--line);border-radius:12px;"
    "overflow:hidden;display:flex;flex-direction:column}"
    ".pics{display:grid;gap:2px;grid-template-columns:repeat(auto-fit,minmax(96px,1fr))}"
    ".pics a{display:block;background:var(--line)}"
    ".pics img{display:block;width:100%;height:auto;object-fit:cover}"
    ".text{padding:.7rem .85rem .8rem}.text p{margin:0 0 .45rem;overflow-wrap:anywhere;"
    "display:-webkit-box;-webkit-line-clamp:4;-webkit-box-orient:vertical;overflow:hidden}"
    ".text p:hover{-webkit-line-clamp:unset}dl{margin:0;display:flex;flex-wrap:wrap;gap:.1rem "
    ".7rem;"
    "font-size:.8rem;color:var(--soft)}dl div{display:flex;gap:.3rem}dd{margin:0}"
    "dt{opacity:.75}.id{font-size:.75rem;color:var(--soft);overflow-wrap:anywhere;margin-top:.4rem}"
    ".bad{border-color:var(--bad)}.error{color:var(--bad);font-weight:550}"
    "a{color:var(--accent)}nav{display:flex;gap:.9rem;flex-wrap:wrap;align-items:center}"
    ".empty{grid-column:1/-1;color:var(--soft);padding:3rem 0;text-align:center}";

struct sheet {
    const char *dir;
    const struct contact_sheet_facts *facts;
    struct buf page;
    uint64_t total, failed; /* cards in all */
    uint64_t pages, number; /* the page being written, from 1 */
    size_t on_page;
};

static void put_escaped(struct buf *out, const char *text)
{
    size_t shown = 0;
    for (; *text; text++, shown++) {
        /* Cut only between characters. */
        if (shown >= PROMPT_SHOWN_BYTES && ((unsigned char)*text & 0xC0) != 0x80) {
            buf_str(out, "…");
            return;
        }
        if (*text == '&')
            buf_str(out, "&amp;");
        else if (*text == '<')
            buf_str(out, "&lt;");
        else if (*text == '>')
            buf_str(out, "&gt;");
        else if (*text == '"')
            buf_str(out, "&quot;");
        else
            buf_char(out, *text);
    }
}

static void page_name(uint64_t number, char *out, size_t size)
{
    if (number == 1)
        snprintf(out, size, "index.html");
    else
        snprintf(out, size, "index-%llu.html", (unsigned long long)number);
}

static void put_link(struct sheet *sheet, uint64_t number, const char *text)
{
    char name[40];
    page_name(number, name, sizeof(name));
    if (number == sheet->number)
        buf_printf(&sheet->page, "<b>%s</b>", text);
    else
        buf_printf(&sheet->page, "<a href=\"%s\">%s</a>", name, text);
}

/* First, last and the nearest pages. */
static void put_nav(struct sheet *sheet)
{
    uint64_t first = sheet->number > 4 ? sheet->number - 4 : 1;
    uint64_t last = sheet->number + 4 < sheet->pages ? sheet->number + 4 : sheet->pages;
    if (sheet->pages <= 1)
        return;
    buf_str(&sheet->page, "<nav>");
    if (first > 1)
        put_link(sheet, 1, "1 …");
    for (uint64_t i = first; i <= last; i++) {
        char text[24];
        snprintf(text, sizeof(text), "%llu", (unsigned long long)i);
        put_link(sheet, i, text);
    }
    if (last < sheet->pages) {
        char text[32];
        snprintf(text, sizeof(text), "… %llu", (unsigned long long)sheet->pages);
        put_link(sheet, sheet->pages, text);
    }
    buf_str(&sheet->page, "</nav>\n");
}

static void begin_page(struct sheet *sheet)
{
    struct buf *out = &sheet->page;
    const struct contact_sheet_facts *facts = sheet->facts;
    buf_clear(out);
    sheet->on_page = 0;
    buf_str(out, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
                 "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>");
    put_escaped(out, facts->title);
    buf_printf(out, " · Atelier</title><style>%s</style></head><body>\n<header><h1>", style);
    put_escaped(out, facts->title);
    buf_printf(out, "</h1><p>%llu drawn", (unsigned long long)(sheet->total - sheet->failed));
    if (sheet->failed > 0)
        buf_printf(out, " · <a class=\"error\" href=\"failed.jsonl\">%llu failed</a>",
                   (unsigned long long)sheet->failed);
    if (facts->rejected > 0)
        buf_printf(out, " · <a class=\"error\" href=\"rejected.jsonl\">%llu line%s rejected</a>",
                   (unsigned long long)facts->rejected, plural(facts->rejected));
    buf_printf(out, " · %s</p></header>\n", facts->status);
    put_nav(sheet);
    buf_str(out, "<main>\n");
    if (sheet->total == 0)
        buf_str(out, "<p class=\"empty\">No pictures yet.</p>");
}

static int end_page(struct sheet *sheet, struct err *err)
{
    char name[40], path[FILE_PATH_MAX_BYTES];
    buf_str(&sheet->page, "</main>\n");
    put_nav(sheet);
    buf_str(&sheet->page, "</body></html>\n");
    page_name(sheet->number, name, sizeof(name));
    if (sheet->page.failed)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "out of memory for the contact sheet");
    if (file_join(path, sheet->dir, name, err) != 0)
        return -1;
    return file_write(path, sheet->page.data, sheet->page.len, FILE_REPLACE, err);
}

static void put_pictures(struct buf *out, const struct journal_card *card)
{
    if (card->file_count == 0)
        return;
    buf_str(out, "<div class=\"pics\">");
    for (size_t i = 0; i < card->file_count; i++) {
        buf_printf(out, "<a href=\"results/%s/%s\"><img loading=\"lazy\" decoding=\"async\" ",
                   card->id, card->files[i]);
        buf_printf(out, "width=\"%d\" height=\"%d\" src=\"results/%s/%s\" alt=\"", card->width,
                   card->height, card->id, card->files[i]);
        put_escaped(out, card->prompt ? card->prompt : card->id);
        buf_str(out, "\"></a>");
    }
    buf_str(out, "</div>");
}

static void put_fact(struct buf *out, const char *name, const char *value)
{
    if (!value || !*value)
        return;
    buf_printf(out, "<div><dt>%s</dt><dd>", name);
    put_escaped(out, value);
    buf_str(out, "</dd></div>");
}

static void put_facts(struct buf *out, const struct journal_card *card)
{
    buf_printf(out, "<dl><div><dt>seed</dt><dd>%llu</dd></div>", (unsigned long long)card->seed);
    if (card->width > 0)
        buf_printf(out, "<div><dt>size</dt><dd>%d×%d</dd></div>", card->width, card->height);
    if (card->steps > 0)
        buf_printf(out, "<div><dt>steps</dt><dd>%d</dd></div>", card->steps);
    if (!card->error)
        buf_printf(out, "<div><dt>time</dt><dd>%.2f s</dd></div>", card->seconds);
    put_fact(out, "model", card->model);
    put_fact(out, "LoRA", card->beside.loras);
    put_fact(out, "ControlNet", card->beside.controlnets);
    put_fact(out, "embedding", card->beside.embeddings);
    buf_str(out, "</dl>");
}

static int put_card(void *user, const struct journal_card *card, struct err *err)
{
    struct sheet *sheet = user;
    struct buf *out = &sheet->page;
    if (sheet->on_page == CONTACT_SHEET_PAGE) {
        if (end_page(sheet, err) != 0)
            return -1;
        sheet->number++;
        begin_page(sheet);
    }
    sheet->on_page++;
    buf_printf(out, "<article%s>", card->error ? " class=\"bad\"" : "");
    put_pictures(out, card);
    buf_str(out, "<div class=\"text\"><p>");
    put_escaped(out, card->prompt ? card->prompt : "");
    buf_str(out, "</p>");
    if (card->error) {
        buf_str(out, "<p class=\"error\">");
        put_escaped(out, card->error);
        buf_str(out, "</p>");
    }
    put_facts(out, card);
    buf_printf(out, "<div class=\"id\">%s</div></div></article>\n", card->id);
    return 0;
}

static int count_card(void *user, const struct journal_card *card, struct err *err)
{
    struct sheet *sheet = user;
    (void)err;
    sheet->total++;
    sheet->failed += card->error != NULL;
    return 0;
}

int contact_sheet_write(const struct journal *journal, const char *dir,
                        const struct contact_sheet_facts *facts, struct err *err)
{
    struct sheet sheet = {.dir = dir, .facts = facts, .number = 1};
    buf_init(&sheet.page, PAGE_MAX_BYTES);
    int rc = journal_walk(journal, count_card, &sheet, err);
    sheet.pages = (sheet.total + CONTACT_SHEET_PAGE - 1) / CONTACT_SHEET_PAGE;
    begin_page(&sheet);
    if (rc == 0)
        rc = journal_walk(journal, put_card, &sheet, err);
    if (rc == 0)
        rc = end_page(&sheet, err);
    buf_release(&sheet.page);
    return rc;
}
