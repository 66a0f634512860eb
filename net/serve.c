#include "net/serve.h"

#include <arpa/inet.h>
#include <microhttpd.h>
#include <netdb.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ANSWER_MAX_BYTES (16u << 20)
#define CONNECTIONS_MAX 64
#define IDLE_S 10

#if MHD_VERSION >= 0x00097002
typedef enum MHD_Result mhd_result;
#else
typedef int mhd_result;
#endif

struct serve {
    struct serve_options options;
    struct MHD_Daemon *daemon;
};

static mhd_result on_request(void *user, struct MHD_Connection *connection, const char *path,
                             const char *method, const char *version, const char *upload,
                             size_t *upload_size, void **state)
{
    struct serve *serve = user;
    const char *type = "text/plain; charset=utf-8";
    struct buf out;
    int status = MHD_HTTP_METHOD_NOT_ALLOWED;
    (void)version;
    (void)upload;
    (void)state;
    *upload_size = 0;
    buf_init(&out, ANSWER_MAX_BYTES);
    if (strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0)
        status = serve->options.answer(serve->options.user, path, &out, &type);
    if (out.failed) {
        buf_clear(&out);
        status = MHD_HTTP_INTERNAL_SERVER_ERROR;
    }
    struct MHD_Response *response =
        MHD_create_response_from_buffer(out.len, out.data, MHD_RESPMEM_MUST_COPY);
    buf_release(&out);
    if (!response)
        return MHD_NO;
    (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    mhd_result rc = MHD_queue_response(connection, (unsigned)status, response);
    MHD_destroy_response(response);
    return rc;
}

static int find_address(const struct serve_options *options, struct sockaddr_in *address,
                        struct err *err)
{
    *address =
        (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)options->port)};
    if (inet_pton(AF_INET, options->host, &address->sin_addr) == 1)
        return 0;
    return err_set(err, ERR_INVALID, ERR_FATAL,
                   "metrics-host: '%.80s' is no IPv4 address (0.0.0.0 is all of this machine's)",
                   options->host);
}

int serve_create(struct serve **out, const struct serve_options *options, struct err *err)
{
    struct serve *serve = calloc(1, sizeof(*serve));
    struct sockaddr_in address;
    *out = NULL;
    if (!serve)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for the metrics server");
    serve->options = *options;
    if (find_address(options, &address, err) != 0) {
        free(serve);
        return -1;
    }
    unsigned flags = MHD_USE_EPOLL;
    if (options->threaded)
        flags |= MHD_USE_INTERNAL_POLLING_THREAD;
    serve->daemon = MHD_start_daemon(flags, (uint16_t)options->port, NULL, NULL, on_request, serve,
                                     MHD_OPTION_SOCK_ADDR, (struct sockaddr *)&address,
                                     MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS_MAX,
                                     MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_S,
                                     MHD_OPTION_LISTENING_ADDRESS_REUSE, 1u, MHD_OPTION_END);
    if (!serve->daemon) {
        free(serve);
        return err_set(err, ERR_IO, ERR_FATAL,
                       "metrics-port: cannot listen on %s:%d; is it another program's?",
                       options->host, options->port);
    }
    *out = serve;
    return 0;
}

void serve_free(struct serve *serve)
{
    if (!serve)
        return;
    MHD_stop_daemon(serve->daemon);
    free(serve);
}

int serve_port(const struct serve *serve)
{
    const union MHD_DaemonInfo *info =
        MHD_get_daemon_info(serve->daemon, MHD_DAEMON_INFO_BIND_PORT);
    return info ? info->port : serve->options.port;
}

int serve_fd(const struct serve *serve)
{
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(serve->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    return info ? info->epoll_fd : -1;
}

void serve_run(struct serve *serve)
{
    (void)MHD_run(serve->daemon);
}
