/*
 * topics.h: the names of a cell's Kafka topics, of its Redis keys and of its object keys: the
 * addresses of the contract. docs/contracts.md says what lies at each.
 */
#ifndef ATELIER_SCHEMA_TOPICS_H
#define ATELIER_SCHEMA_TOPICS_H

#define TOPIC_NAME_BYTES 128

/* Kafka, after the cell's name: <cell>.jobs ... */
#define TOPIC_JOBS "jobs"               /* requests from producers */
#define TOPIC_INTERACTIVE "interactive" /* requests that must not queue behind bulk */
#define TOPIC_STATE "state"             /* the compacted journal */
#define TOPIC_CONTROL "control"         /* operators' orders; its one partition elects the leader */
#define TOPIC_DLQ "dlq"                 /* what could not be accepted */

/* Kafka's groups and ids, after the cell's name. */
#define GROUP_LEADER "leader"
#define GROUP_INGEST "ingest"
#define TRANSACTIONAL_ID "journal"

/* Keys of the state topic that are no jobs; a job id cannot begin with '@'. */
#define STATE_KEY_EPOCH "@epoch"
#define STATE_KEY_PAUSED "@paused:" /* then the batch */
/* Then the webhook-id: a terminal record that is still to be called with, its URL in a header. */
#define STATE_KEY_CALLBACK "@callback:"
#define HEADER_CALLBACK "atelier-callback"

/* Redis. */
#define REDIS_CELL "cell"
#define REDIS_COUNTS "counts"
#define REDIS_WORKERS "workers"
#define REDIS_REPORTS "reports"
#define REDIS_JOB "job:"
#define REDIS_BATCH "batch:"
#define REDIS_WORKER "worker:"
#define REDIS_QUEUE "q:"

#endif
