/*
 * agents.h: a worker process: an agent for its processor, or one for each of its cards.
 *
 * Every card is a worker of its own to the coordinator, since each has its own models in memory and
 * its own speed. A card that is lost ends its agent, which hands back what it had; the others go
 * on.
 */
#ifndef ATELIER_WORKER_AGENTS_H
#define ATELIER_WORKER_AGENTS_H

#include "worker/agent.h"

/* Works as agent_run does, until every agent has ended. 0, or -1 for what ended the first that did
 * not end in good order. Of several agents, the one of card 1 is named NAME-1 and serves metrics
 * one port above that of card 0. */
int agents_run(const struct agent_options *options, const struct log *log, const volatile int *stop,
               struct err *err) must_check;

#endif
