/* A job line of any bytes: parsed, identified and encoded again, which must be stable. */
#include "common/json.h"
#include "schema/job.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct job_problems problems;

static char *encode(const struct job *job)
{
    struct buf out;
    buf_init(&out, JOB_ENCODED_MAX_BYTES);
    job_encode(job, &out);
    ASSERT(!out.failed);
    char *text = strdup(out.data);
    buf_release(&out);
    return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct job job, again;
    struct err err;
    if (job_parse(&job, (const char *)data, size, &problems, &err) != 0) {
        ASSERT(err.class != ERR_REJECT || problems.count > 0);
        struct buf out;
        buf_init(&out, 1 << 20);
        job_problems_write(&problems, &out);
        struct json_doc *doc;
        ASSERT(json_parse(&doc, out.data, out.len, NULL, &err) == 0);
        json_doc_free(doc);
        buf_release(&out);
        job_release(&job);
        return 0;
    }
    ASSERT(job_identify(&job, "fuzz", 1, &err) == 0 && job_id_valid(job.id));
    char *text = encode(&job);
    /* The canonical form may be longer than what came in: escapes, defaults. */
    if (strlen(text) <= JOB_MAX_BYTES) {
        ASSERT(job_parse(&again, text, strlen(text), &problems, &err) == 0);
        ASSERT(job_identify(&again, "fuzz", 1, &err) == 0 && again.content == job.content);
        char *same = encode(&again);
        ASSERT(strcmp(text, same) == 0);
        free(same);
        job_release(&again);
    }
    free(text);
    job_release(&job);
    return 0;
}
