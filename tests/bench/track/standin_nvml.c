/* A stand-in for NVIDIA's libnvidia-ml.so.1: just the functions that bench.track.nvml reaches through
 * pynvml, with the real names, version suffixes and struct layouts. Every call reads its script anew
 * from the environment:
 *
 *   STANDIN_DEVICES    "GPU-aaaa=Name A,GPU-bbbb=Name B"       in NVML's order
 *   STANDIN_MIG        "MIG-cccc=Slice,..."                     instances of device 0; MIG is then on
 *   STANDIN_MEMORY     "used reserved total" in bytes           a field may be N/A
 *   STANDIN_PROCESSES  "self=1000,host=5,4242=N/A"              self: getpid(); host: PID shown by /proc
 *   STANDIN_ENERGY     millijoules
 *   STANDIN_ERRORS     "function=code,..."                      that function fails with that code
 *
 * With -DOLD_DRIVER there is no version 2 of the memory query.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long long u64;
typedef struct { u64 total, free, used; } memory_v1;
typedef struct { unsigned version; u64 total, reserved, free, used; } memory_v2;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } process_v3;

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, BAD_VERSION = 25 };
#define MIG_BASE 1000 /* handles: device i is i + 1, MIG instance j is MIG_BASE + j */
#define NOT_AVAILABLE (~0ULL)

/* The n-th "key=value" of a comma-separated variable; 0 when there are fewer. */
static int entry(const char *variable, int n, char key[128], char value[128]) {
    const char *at = getenv(variable);
    if (!at || !*at) return 0;
    while (n-- > 0) {
        at = strchr(at, ',');
        if (!at) return 0;
        at++;
    }
    value[0] = 0;
    return sscanf(at, "%127[^=,]=%127[^,]", key, value) >= 1;
}

static int scripted_error(const char *function) {
    char key[128], value[128];
    for (int i = 0; entry("STANDIN_ERRORS", i, key, value); i++)
        if (!strcmp(key, function)) return atoi(value);
    return OK;
}
#define FAIL_IF_SCRIPTED do { int code = scripted_error(__func__); if (code) return code; } while (0)

static u64 amount(const char *text) {
    return strcmp(text, "N/A") ? strtoull(text, NULL, 10) : NOT_AVAILABLE;
}

static int describe(void *handle, char uuid[128], char name[128]) {
    long id = (long)handle;
    return id >= MIG_BASE ? entry("STANDIN_MIG", (int)(id - MIG_BASE), uuid, name)
                          : entry("STANDIN_DEVICES", (int)(id - 1), uuid, name);
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; FAIL_IF_SCRIPTED; return OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == BAD_VERSION ? "Argument version mismatch" : "scripted"; }

int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    FAIL_IF_SCRIPTED;
    snprintf(text, size, "580.65.06");
    return OK;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    char key[128], value[128];
    FAIL_IF_SCRIPTED;
    for (*count = 0; entry("STANDIN_DEVICES", (int)*count, key, value);) ++*count;
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    FAIL_IF_SCRIPTED;
    *handle = (void *)(long)(index + 1);
    return OK;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    char key[128], value[128];
    FAIL_IF_SCRIPTED;
    for (int i = 0; entry("STANDIN_DEVICES", i, key, value); i++)
        if (!strcmp(key, uuid)) return *handle = (void *)(long)(i + 1), OK;
    for (int i = 0; entry("STANDIN_MIG", i, key, value); i++)
        if (!strcmp(key, uuid)) return *handle = (void *)(long)(MIG_BASE + i), OK;
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(void *handle, char *text, unsigned size) {
    char uuid[128], name[128];
    FAIL_IF_SCRIPTED;
    if (!describe(handle, uuid, name)) return INVALID;
    snprintf(text, size, "%s", uuid);
    return OK;
}

int nvmlDeviceGetName(void *handle, char *text, unsigned size) {
    char uuid[128], name[128];
    FAIL_IF_SCRIPTED;
    if (!describe(handle, uuid, name)) return INVALID;
    snprintf(text, size, "%s", name);
    return OK;
}

static int memory(u64 *used, u64 *reserved, u64 *total) {
    char a[32], b[32], c[32];
    const char *script = getenv("STANDIN_MEMORY");
    if (!script || sscanf(script, "%31s %31s %31s", a, b, c) != 3) return NOT_SUPPORTED;
    *used = amount(a), *reserved = amount(b), *total = amount(c);
    return OK;
}

int nvmlDeviceGetMemoryInfo(void *handle, memory_v1 *info) {
    u64 reserved;
    int code;
    (void)handle;
    FAIL_IF_SCRIPTED;
    if ((code = memory(&info->used, &reserved, &info->total))) return code;
    if (info->used != NOT_AVAILABLE) info->used += reserved; /* what version 1 really does */
    info->free = info->total - info->used;
    return OK;
}

#ifndef OLD_DRIVER
int nvmlDeviceGetMemoryInfo_v2(void *handle, memory_v2 *info) {
    int code;
    (void)handle;
    FAIL_IF_SCRIPTED;
    if (info->version != (sizeof(memory_v2) | 2u << 24)) return BAD_VERSION;
    if ((code = memory(&info->used, &info->reserved, &info->total))) return code;
    info->free = info->total - info->reserved - info->used;
    return OK;
}
#endif

static unsigned pid_of(const char *text) {
    if (!strcmp(text, "self")) return (unsigned)getpid();
    if (strcmp(text, "host")) return (unsigned)atoi(text);
    char shown[32] = {0};
    return readlink("/proc/self", shown, sizeof shown - 1) > 0 ? (unsigned)atoi(shown) : 0;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, process_v3 *processes) {
    char pid[128], used[128];
    unsigned n = 0;
    (void)handle;
    FAIL_IF_SCRIPTED;
    while (entry("STANDIN_PROCESSES", (int)n, pid, used)) {
        if (processes && n < *count) processes[n] = (process_v3){pid_of(pid), amount(used), ~0u, ~0u};
        n++;
    }
    int fits = n <= *count && (processes || !n);
    *count = n;
    return fits ? OK : TOO_SMALL;
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    const char *instances = getenv("STANDIN_MIG");
    FAIL_IF_SCRIPTED;
    *current = *pending = instances && (long)handle == 1;
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) {
    (void)handle;
    FAIL_IF_SCRIPTED;
    *count = 7;
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **instance) {
    char key[128], value[128];
    (void)handle;
    FAIL_IF_SCRIPTED;
    if (!entry("STANDIN_MIG", (int)index, key, value)) return NOT_FOUND;
    *instance = (void *)(long)(MIG_BASE + index);
    return OK;
}

int nvmlDeviceGetTotalEnergyConsumption(void *handle, u64 *millijoules) {
    const char *script = getenv("STANDIN_ENERGY");
    FAIL_IF_SCRIPTED;
    if ((long)handle >= MIG_BASE || !script) return NOT_SUPPORTED;
    *millijoules = strtoull(script, NULL, 10);
    return OK;
}
