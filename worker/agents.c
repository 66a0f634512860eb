#include "worker/agents.h"

#include "worker/support.h"

#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#define AGENTS_MAX 64
#define NAME_BYTES 128

struct crew {
    const volatile int *stop;
    pthread_mutex_t lock; /* of what follows */
    bool failed;
    struct err err; /* the first */
};

struct member {
    struct crew *crew;
    struct agent_options options;
    struct log log;
    char name[NAME_BYTES], device[SUPPORT_DEVICE_BYTES];
    pthread_t thread;
};

/* Whoever waits for the process learns at its end that something went wrong; the log says it now.
 */
static void note_failure(struct member *member, const struct err *err)
{
    struct crew *crew = member->crew;
    log_event(&member->log, LOG_ERROR, "card_ended", "why", err->message, NULL);
    pthread_mutex_lock(&crew->lock);
    if (!crew->failed)
        crew->err = *err;
    crew->failed = true;
    pthread_mutex_unlock(&crew->lock);
}

static void *member_main(void *user)
{
    struct member *member = user;
    struct err err;
    if (agent_run(&member->options, &member->log, member->crew->stop, &err) != 0)
        note_failure(member, &err);
    return NULL;
}

static void make_member(struct member *member, struct crew *crew, const struct log *log,
                        const struct agent_options *options, int card)
{
    *member = (struct member){.crew = crew, .options = *options, .log = *log};
    snprintf(member->name, sizeof(member->name), "%.100s-%d", options->name, card);
    member->log.worker = member->name;
    member->options.name = member->name;
    member->options.device = support_device_name(card, member->device);
    if (options->metrics_port > 0)
        member->options.metrics_port = options->metrics_port + card;
}

static int run_crew(const struct agent_options *options, const struct log *log, int count,
                    struct crew *crew)
{
    struct member members[AGENTS_MAX];
    int started = 0;
    for (; started < count; started++) {
        struct member *member = &members[started];
        struct err err;
        make_member(member, crew, log, options, started);
        if (pthread_create(&member->thread, NULL, member_main, member) != 0) {
            err_set(&err, ERR_MEMORY, ERR_FATAL, "cannot start a thread for %s", member->device);
            note_failure(member, &err);
            break;
        }
        pthread_setname_np(member->thread, member->device);
    }
    for (int i = 0; i < started; i++)
        pthread_join(members[i].thread, NULL);
    return crew->failed ? -1 : 0;
}

int agents_run(const struct agent_options *options, const struct log *log, const volatile int *stop,
               struct err *err)
{
    struct agent_options one = *options;
    struct crew crew = {.stop = stop};
    char name[NAME_BYTES], host[64] = "worker";
    int count = support_device_count(options->device), rc;
    (void)gethostname(host, sizeof(host) - 1);
    snprintf(name, sizeof(name), "%s-%d", host, (int)getpid());
    if (!one.name)
        one.name = name;
    if (count == 1)
        return agent_run(&one, log, stop, err);
    pthread_mutex_init(&crew.lock, NULL);
    rc = run_crew(&one, log, count < AGENTS_MAX ? count : AGENTS_MAX, &crew);
    pthread_mutex_destroy(&crew.lock);
    if (rc != 0)
        *err = crew.err;
    return rc;
}
