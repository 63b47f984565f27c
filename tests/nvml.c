/* What of a driver's library is asked for, with three cards: the second cannot count, all others draw 300 W. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *const uuids[] = {"GPU-aa", "GPU-bb", "GPU-cc"};

int nvmlInit_v2(void) { return getenv("NO_DRIVER") ? 9 : 0; }

int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return 0; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **card) { *card = (void *)(index + 1UL); return index < 3 ? 0 : 2; }

int nvmlDeviceGetHandleByUUID(const char *uuid, void **card) {
    for (unsigned at = 0; at < 3; at++)
        if (!strcmp(uuid, uuids[at])) return nvmlDeviceGetHandleByIndex_v2(at, card);
    return 6;
}

int nvmlDeviceGetTotalEnergyConsumption(void *card, unsigned long long *millijoules) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    *millijoules = (unsigned long)card * 1000000000000ULL + now.tv_sec * 300000ULL + now.tv_nsec * 3ULL / 10000;
    return card == (void *)2 ? 3 : 0;
}
