/*
 * ready.c: where ready jobs stand: lanes, stalls and groups appear with their first job and go with
 * their last. See state.h.
 */
#include "scheduler/state.h"

#include <string.h>

#define HASH 0x9E3779B97F4A7C15u

/* ---- orders ---- */

int64_t end_of(const struct slot *slot)
{
    return slot->deadline_ns == SCHEDULER_TIME_NONE ? INT64_MAX : slot->deadline_ns;
}

/* Earliest deadline first, then first come. */
static bool leads(const struct slot *x, const struct slot *y)
{
    if (end_of(x) != end_of(y))
        return end_of(x) < end_of(y);
    return x->place < y->place;
}

bool leads_group(const struct heap_node *a, const struct heap_node *b)
{
    return leads(FROM_NODE(const struct slot, by_order, a),
                 FROM_NODE(const struct slot, by_order, b));
}

struct slot *leader(const struct group *group)
{
    return FROM_NODE(struct slot, by_order, group->ready.top);
}

static bool leads_stall(const struct heap_node *a, const struct heap_node *b)
{
    return leads(leader(FROM_NODE(const struct group, by_leader, a)),
                 leader(FROM_NODE(const struct group, by_leader, b)));
}

static bool is_older(const struct heap_node *a, const struct heap_node *b)
{
    return FROM_NODE(const struct stall, by_age, a)->first->place <
           FROM_NODE(const struct stall, by_age, b)->first->place;
}

/* ---- stalls ---- */

static void show_stall(struct scheduler *s, struct stall *stall)
{
    struct stall **shelf = &s->pools[stall->lane->home].shelves[stall->class];
    stall->next = *shelf;
    stall->link = shelf;
    if (stall->next)
        stall->next->link = &stall->next;
    *shelf = stall;
}

static void hide_stall(struct stall *stall)
{
    *stall->link = stall->next;
    if (stall->next)
        stall->next->link = stall->link;
}

static struct stall **stall_bucket(const struct scheduler *s, const struct lane *lane,
                                   uint32_t tenant, uint32_t class)
{
    uint64_t h = (uint64_t)(lane - s->lanes) * HASH + (uint64_t)tenant * CLASS_COUNT + class;
    return &s->stall_buckets[(h * HASH) >> 32 & s->bucket_mask];
}

static struct stall *stall_of(struct scheduler *s, const struct slot *slot)
{
    struct lane *lane = s->profiles[slot->profile].lane;
    struct tenant *tenant = &s->tenants[slot->tenant];
    struct stall **bucket = stall_bucket(s, lane, slot->tenant, slot->class);
    for (struct stall *stall = *bucket; stall; stall = stall->chain)
        if (stall->lane == lane && stall->tenant == slot->tenant && stall->class == slot->class)
            return stall;
    struct stall *stall = s->free_stalls;
    if (stall)
        s->free_stalls = stall->chain;
    else
        stall = &s->stalls[s->stalls_used++];
    *stall = (struct stall){.lane = lane,
                            .tenant = slot->tenant,
                            .class = slot->class,
                            .blocked = tenant->blocked,
                            .groups.before = leads_stall,
                            .chain = *bucket,
                            .lane_next = lane->stalls,
                            .lane_link = &lane->stalls,
                            .tenant_next = tenant->stalls,
                            .tenant_link = &tenant->stalls};
    *bucket = stall;
    if (lane->stalls)
        lane->stalls->lane_link = &stall->lane_next;
    lane->stalls = stall;
    if (tenant->stalls)
        tenant->stalls->tenant_link = &stall->tenant_next;
    tenant->stalls = stall;
    if (!stall->blocked)
        show_stall(s, stall);
    return stall;
}

static void drop_stall(struct scheduler *s, struct stall *stall)
{
    struct stall **link = stall_bucket(s, stall->lane, stall->tenant, stall->class);
    while (*link != stall)
        link = &(*link)->chain;
    *link = stall->chain;
    if (!stall->blocked)
        hide_stall(stall);
    *stall->lane_link = stall->lane_next;
    if (stall->lane_next)
        stall->lane_next->lane_link = stall->lane_link;
    *stall->tenant_link = stall->tenant_next;
    if (stall->tenant_next)
        stall->tenant_next->tenant_link = stall->tenant_link;
    stall->chain = s->free_stalls;
    s->free_stalls = stall;
}

void judge_quota(struct scheduler *s, uint32_t number)
{
    struct tenant *tenant = &s->tenants[number];
    bool blocked = tenant->running_max > 0 && tenant->running >= tenant->running_max;
    if (tenant->blocked == blocked)
        return;
    tenant->blocked = blocked;
    for (struct stall *stall = tenant->stalls; stall; stall = stall->tenant_next) {
        stall->blocked = blocked;
        if (blocked) {
            hide_stall(stall);
            heap_remove(&stall->lane->ages, &stall->by_age);
        } else {
            show_stall(s, stall);
            heap_insert(&stall->lane->ages, &stall->by_age);
        }
    }
}

/* ---- groups ---- */

struct group **aisle_of(const struct scheduler *s, uint32_t model, uint32_t home,
                        enum job_class class)
{
    uint64_t h = ((uint64_t)model * SCHEDULER_CLASSES_MAX + home) * CLASS_COUNT + class;
    return &s->aisles[(h * HASH) >> 32 & s->aisle_mask];
}

static void enter_aisle(struct scheduler *s, struct group *group)
{
    uint8_t home = group->stall->lane->home;
    struct group **aisle = aisle_of(s, group->model, home, group->stall->class);
    group->home = home;
    group->aisle_next = *aisle;
    group->aisle_link = aisle;
    if (group->aisle_next)
        group->aisle_next->aisle_link = &group->aisle_next;
    *aisle = group;
}

static void leave_aisle(struct group *group)
{
    *group->aisle_link = group->aisle_next;
    if (group->aisle_next)
        group->aisle_next->aisle_link = group->aisle_link;
}

static struct group **group_bucket(const struct scheduler *s, const struct stall *stall,
                                   const struct slot *slot)
{
    uint64_t h = (uint64_t)(stall - s->stalls) * HASH + slot->model;
    h = h * HASH + ((uint64_t)slot->width << 32 | (uint64_t)slot->height << 16 | slot->profile);
    return &s->group_buckets[((h + slot->alone) * HASH) >> 32 & s->bucket_mask];
}

static struct group *group_of(struct scheduler *s, const struct slot *slot)
{
    struct stall *stall = stall_of(s, slot);
    struct group **bucket = group_bucket(s, stall, slot);
    for (struct group *group = *bucket; group; group = group->chain)
        if (group->stall == stall && group->model == slot->model &&
            group->profile == slot->profile && group->width == slot->width &&
            group->height == slot->height && group->alone == slot->alone)
            return group;
    struct group *group = s->free_groups;
    if (group)
        s->free_groups = group->chain;
    else
        group = &s->groups[s->groups_used++];
    *group = (struct group){.stall = stall,
                            .model = slot->model,
                            .profile = slot->profile,
                            .width = slot->width,
                            .height = slot->height,
                            .alone = slot->alone,
                            .ready.before = leads_group,
                            .chain = *bucket};
    *bucket = group;
    enter_aisle(s, group);
    return group;
}

static void drop_group(struct scheduler *s, struct group *group, const struct slot *like)
{
    struct group **link = group_bucket(s, group->stall, like);
    while (*link != group)
        link = &(*link)->chain;
    *link = group->chain;
    leave_aisle(group);
    group->chain = s->free_groups;
    s->free_groups = group;
}

/* ---- places in line ---- */

uint32_t overtaken(const struct scheduler *s, const struct slot *slot)
{
    const struct pool *pool = &s->pools[slot->group->stall->lane->home];
    return pool->departed + order_before(&pool->order, slot->place) - slot->mark;
}

#define FOR_EACH_READY(s, lane, stall, slot)                                                       \
    for (struct lane *lane = (s)->busy; lane; lane = lane->next)                                   \
        for (struct stall *stall = lane->stalls; stall; stall = stall->lane_next)                  \
            for (struct slot *slot = stall->first; slot; slot = slot->next)

/* The number of ready jobs before each 64 places, in all pools together. */
static void number_anew(struct scheduler *s)
{
    uint32_t words = s->places / ORDER_PLACES, sum = 0;
    for (uint32_t i = 0; i < words; i++) {
        uint64_t bits = 0;
        for (uint32_t c = 0; c < s->options.classes_max; c++)
            bits |= s->pools[c].order.bits[i];
        s->renumbered[i] = sum;
        sum += (uint32_t)__builtin_popcountll(bits);
    }
    s->next_place = sum;
}

static uint32_t new_place(const struct scheduler *s, uint32_t place)
{
    uint32_t word = place / ORDER_PLACES;
    uint64_t bits = 0;
    for (uint32_t c = 0; c < s->options.classes_max; c++)
        bits |= s->pools[c].order.bits[word];
    bits &= ((uint64_t)1 << place % ORDER_PLACES) - 1;
    return s->renumbered[word] + (uint32_t)__builtin_popcountll(bits);
}

static void move_lane(struct scheduler *s, struct lane *lane, uint8_t home)
{
    for (struct stall *stall = lane->stalls; stall; stall = stall->lane_next)
        if (!stall->blocked)
            hide_stall(stall);
    lane->home = home;
    for (struct stall *stall = lane->stalls; stall; stall = stall->lane_next)
        if (!stall->blocked)
            show_stall(s, stall);
}

uint8_t lane_home(const struct lane *lane)
{
    for (int i = 0; i < lane->route_count; i++)
        if (lane->takers & 1u << lane->route[i])
            return lane->route[i];
    return lane->route[0];
}

/* Gives every ready job a new place, in the same order, and its lane's new home; who has been
 * overtaken how often stays. Once in some millions of jobs, or when a home changes. */
static void reorder(struct scheduler *s)
{
    FOR_EACH_READY(s, lane, stall, slot)
    slot->mark = overtaken(s, slot);
    number_anew(s);
    FOR_EACH_READY(s, lane, stall, slot)
    slot->place = new_place(s, slot->place);
    for (uint32_t c = 0; c < s->options.classes_max; c++) {
        struct pool *pool = &s->pools[c];
        order_clear(&pool->order);
        pool->ready = 0;
        memset(pool->home_s, 0, sizeof(pool->home_s));
    }
    for (struct lane *lane = s->busy; lane; lane = lane->next)
        if (lane->home != lane_home(lane))
            move_lane(s, lane, lane_home(lane));
    FOR_EACH_READY(s, lane, stall, slot)
    {
        struct pool *pool = &s->pools[lane->home];
        order_mark(&pool->order, slot->place);
        pool->ready++;
        pool->home_s[slot->class] += seconds_on(s, slot, lane->home);
        if (slot->group->home != lane->home) {
            leave_aisle(slot->group);
            enter_aisle(s, slot->group);
        }
    }
    for (uint32_t c = 0; c < s->options.classes_max; c++)
        order_count(&s->pools[c].order);
    FOR_EACH_READY(s, lane, stall, slot)
    {
        const struct pool *pool = &s->pools[lane->home];
        slot->mark = pool->departed + order_before(&pool->order, slot->place) - slot->mark;
    }
}

/* ---- coming and going ---- */

/* A tenant that comes back from idling has no claim on the time it did not use. */
static void wake_tenant(struct scheduler *s, struct tenant *tenant)
{
    double least = -1;
    for (const struct tenant *other = s->awake; other; other = other->next)
        if (least < 0 || other->served < least)
            least = other->served;
    if (tenant->served < least)
        tenant->served = least;
    tenant->next = s->awake;
    tenant->link = &s->awake;
    if (tenant->next)
        tenant->next->link = &tenant->next;
    s->awake = tenant;
}

static void rest_tenant(struct tenant *tenant)
{
    *tenant->link = tenant->next;
    if (tenant->next)
        tenant->next->link = tenant->link;
}

static void join_lane(struct scheduler *s, struct lane *lane)
{
    if (lane->ready++ > 0)
        return;
    lane->home = lane_home(lane);
    lane->next = s->busy;
    lane->link = &s->busy;
    if (lane->next)
        lane->next->link = &lane->next;
    s->busy = lane;
}

static void quit_lane(struct lane *lane)
{
    if (--lane->ready > 0)
        return;
    *lane->link = lane->next;
    if (lane->next)
        lane->next->link = lane->link;
}

static void count_ready(struct scheduler *s, const struct slot *slot, int by)
{
    struct profile *profile = &s->profiles[slot->profile];
    struct pool *home = &s->pools[profile->lane->home];
    struct pool *preferred = &s->pools[profile->is.route[0]];
    profile->ready[slot->class] += by * (double)slot->units;
    home->ready += (uint32_t)by;
    home->home_s[slot->class] += by * seconds_on(s, slot, profile->lane->home);
    preferred->preferring += (uint32_t)by;
    preferred->preferring_s += by * seconds_preferred(s, slot);
    s->tenants[slot->tenant].ready += (uint32_t)by;
    s->count.ready += (uint32_t)by;
    /* Sums of what comes and goes drift; where nothing is left they are known. */
    if (home->ready == 0)
        memset(home->home_s, 0, sizeof(home->home_s));
    if (preferred->preferring == 0)
        preferred->preferring_s = 0;
}

void enter_ready(struct scheduler *s, struct slot *slot)
{
    struct tenant *tenant = &s->tenants[slot->tenant];
    if (tenant->ready == 0)
        wake_tenant(s, tenant);
    if (s->next_place == s->places)
        reorder(s);
    join_lane(s, s->profiles[slot->profile].lane);
    struct group *group = slot->group = group_of(s, slot);
    struct stall *stall = group->stall;
    struct pool *pool = &s->pools[stall->lane->home];
    slot->state = READY;
    slot->place = s->next_place++;
    slot->mark = pool->departed + pool->ready;
    order_add(&pool->order, slot->place);
    count_ready(s, slot, 1);
    slot->prev = stall->last;
    slot->next = NULL;
    *(stall->last ? &stall->last->next : &stall->first) = slot;
    stall->last = slot;
    if (stall->first == slot && !stall->blocked)
        heap_insert(&stall->lane->ages, &stall->by_age);
    if (group->ready.top && leads(slot, leader(group)))
        heap_remove(&stall->groups, &group->by_leader);
    else if (group->ready.top) {
        heap_insert(&group->ready, &slot->by_order);
        return;
    }
    heap_insert(&group->ready, &slot->by_order);
    heap_insert(&stall->groups, &group->by_leader);
}

static void leave_group(struct scheduler *s, struct slot *slot)
{
    struct group *group = slot->group;
    bool led = leader(group) == slot;
    if (led)
        heap_remove(&group->stall->groups, &group->by_leader);
    heap_remove(&group->ready, &slot->by_order);
    if (!group->ready.top)
        drop_group(s, group, slot);
    else if (led)
        heap_insert(&group->stall->groups, &group->by_leader);
}

void leave_ready(struct scheduler *s, struct slot *slot)
{
    struct stall *stall = slot->group->stall;
    struct lane *lane = stall->lane;
    struct pool *pool = &s->pools[lane->home];
    bool oldest = stall->first == slot;
    order_remove(&pool->order, slot->place);
    pool->departed++;
    count_ready(s, slot, -1);
    if (s->tenants[slot->tenant].ready == 0)
        rest_tenant(&s->tenants[slot->tenant]);
    leave_group(s, slot);
    slot->group = NULL;
    if (oldest && !stall->blocked)
        heap_remove(&lane->ages, &stall->by_age);
    *(slot->prev ? &slot->prev->next : &stall->first) = slot->next;
    *(slot->next ? &slot->next->prev : &stall->last) = slot->prev;
    if (!stall->first)
        drop_stall(s, stall);
    else if (oldest && !stall->blocked)
        heap_insert(&lane->ages, &stall->by_age);
    quit_lane(lane);
}

/* ---- profiles and lanes ---- */

static bool same_lane(const struct lane *lane, const struct scheduler_profile *is)
{
    return lane->needs == is->needs && lane->memory_bytes == is->memory_bytes &&
           lane->route_count == is->route_count &&
           memcmp(lane->route, is->route, is->route_count) == 0;
}

static uint16_t takers_of(const struct scheduler *s, const struct lane *lane, uint32_t class)
{
    for (const struct kind *kind = s->pools[class].kinds; kind; kind = kind->next)
        if (can_take(kind, lane))
            return (uint16_t)(1u << class);
    return 0;
}

static struct lane *lane_of(struct scheduler *s, const struct scheduler_profile *is)
{
    struct lane *lane = NULL;
    for (uint32_t i = 0; i < s->lanes_used; i++) {
        if (s->lanes[i].profiles > 0 && same_lane(&s->lanes[i], is)) {
            s->lanes[i].profiles++;
            return &s->lanes[i];
        }
        if (s->lanes[i].profiles == 0)
            lane = &s->lanes[i];
    }
    if (!lane)
        lane = &s->lanes[s->lanes_used++];
    *lane = (struct lane){.route_count = is->route_count,
                          .needs = is->needs,
                          .memory_bytes = is->memory_bytes,
                          .profiles = 1,
                          .ages.before = is_older};
    memcpy(lane->route, is->route, is->route_count);
    for (int i = 0; i < is->route_count; i++) {
        ASSERT(is->route[i] < s->options.classes_max);
        lane->allowed |= (uint16_t)(1u << is->route[i]);
    }
    for (uint32_t class = 0; class < s->options.classes_max; class ++)
        lane->takers |= takers_of(s, lane, class);
    lane->home = lane_home(lane);
    return lane;
}

void update_takers(struct scheduler *s, uint32_t device_class)
{
    bool moved = false;
    for (uint32_t i = 0; i < s->lanes_used; i++) {
        struct lane *lane = &s->lanes[i];
        if (lane->profiles == 0)
            continue;
        lane->takers &= (uint16_t) ~(1u << device_class);
        lane->takers |= takers_of(s, lane, device_class);
        moved = moved || (lane->ready > 0 && lane->home != lane_home(lane));
    }
    if (moved)
        reorder(s);
}

static bool is_placed_before(const struct heap_node *a, const struct heap_node *b)
{
    return FROM_NODE(const struct slot, by_order, a)->place <
           FROM_NODE(const struct slot, by_order, b)->place;
}

/* Takes a profile's ready jobs out of line, or returns an empty heap. */
static struct heap take_out(struct scheduler *s, uint32_t profile, struct lane *lane)
{
    struct heap taken = {.before = is_placed_before};
    for (struct stall *stall = lane->stalls, *next_stall; stall; stall = next_stall) {
        next_stall = stall->lane_next;
        for (struct slot *slot = stall->first, *next; slot; slot = next) {
            next = slot->next;
            if (slot->profile != profile)
                continue;
            uint32_t place = slot->place;
            leave_ready(s, slot);
            slot->place = place;
            heap_insert(&taken, &slot->by_order);
        }
    }
    return taken;
}

void set_profile(struct scheduler *s, uint32_t number, const struct scheduler_profile *is)
{
    struct profile *profile = &s->profiles[number];
    struct heap taken = {0};
    ASSERT(number < s->options.profiles_max && is->route_count > 0 &&
           is->route_count <= s->options.classes_max);
    bool known = profile->is.route_count > 0;
    bool moves = !known || !same_lane(profile->lane, is);
    double before = known ? (double)profile->is.seconds[profile->is.route[0]] : 0;
    double change = (double)is->seconds[is->route[0]] - before;
    if (moves && known) {
        for (uint32_t i = 0; i < s->options.workers_max; i++) {
            struct slot *promised = s->workers[i].promised;
            if (promised && promised->profile == number)
                break_promise(s, promised);
        }
        taken = take_out(s, number, profile->lane);
        profile->lane->profiles--;
    }
    for (int class = 0; class < CLASS_COUNT && !moves; class ++) {
        uint8_t home = profile->lane->home, preferred = is->route[0];
        double units = profile->ready[class];
        s->pools[home].home_s[class] +=
            units * ((double)is->seconds[home] - (double)profile->is.seconds[home]);
        s->pools[preferred].preferring_s += units * change;
    }
    s->count.work_s += profile->waiting * change;
    profile->is = *is;
    if (moves)
        profile->lane = lane_of(s, is);
    while (taken.top) {
        struct slot *slot = FROM_NODE(struct slot, by_order, taken.top);
        heap_remove(&taken, taken.top);
        enter_ready(s, slot);
    }
}
