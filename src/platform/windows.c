/* SPDX-License-Identifier: Apache-2.0
 * Windows 10 and newer. Paths are UTF-8 in the engine and UTF-16 at the system's door. */
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#if !defined(_WIN32_WINNT)
#define _WIN32_WINNT 0x0a00
#endif
#include "platform/platform.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <wchar.h>
#include <windows.h>

/* ------------------------------------------------------------------------------------- threads */

enum { STACK_BYTES = 1 << 20 };

typedef struct {
    void (*main)(void *arg);
    void *arg;
} start;

static DWORD WINAPI run(void *arg) {
    start begin = *(start *)arg;
    free(arg);
    begin.main(begin.arg);
    return 0;
}

bool rwkvc_thread_start(rwkvc_thread *thread, void (*main)(void *arg), void *arg) {
    start *begin = malloc(sizeof *begin);
    if (!begin) return false;
    *begin = (start){main, arg};
    *thread = CreateThread(NULL, STACK_BYTES, run, begin, STACK_SIZE_PARAM_IS_A_RESERVATION, NULL);
    if (!*thread) free(begin);
    return *thread != NULL;
}

void rwkvc_thread_join(rwkvc_thread *thread) {
    WaitForSingleObject(*thread, INFINITE);
    CloseHandle(*thread);
}
void rwkvc_thread_yield(void) { SwitchToThread(); }

bool rwkvc_thread_lower(void) { return SetThreadPriority(GetCurrentThread(), THREAD_PRIORITY_BELOW_NORMAL) != 0; }

/* The header keeps room for them without <windows.h>, in which one word is all they are. */
_Static_assert(sizeof(SRWLOCK) == sizeof(rwkvc_mutex), "a lock is a word");
_Static_assert(sizeof(CONDITION_VARIABLE) == sizeof(rwkvc_condition), "a condition variable is a word");
static SRWLOCK *lock_of(rwkvc_mutex *mutex) { return (SRWLOCK *)(void *)mutex; }
static CONDITION_VARIABLE *condition_of(rwkvc_condition *condition) { return (CONDITION_VARIABLE *)(void *)condition; }

void rwkvc_mutex_init(rwkvc_mutex *mutex) { InitializeSRWLock(lock_of(mutex)); }
void rwkvc_mutex_destroy(rwkvc_mutex *mutex) { (void)mutex; }
void rwkvc_mutex_lock(rwkvc_mutex *mutex) { AcquireSRWLockExclusive(lock_of(mutex)); }
void rwkvc_mutex_unlock(rwkvc_mutex *mutex) { ReleaseSRWLockExclusive(lock_of(mutex)); }
void rwkvc_condition_init(rwkvc_condition *condition) { InitializeConditionVariable(condition_of(condition)); }
void rwkvc_condition_destroy(rwkvc_condition *condition) { (void)condition; }
void rwkvc_condition_wait(rwkvc_condition *condition, rwkvc_mutex *mutex) {
    SleepConditionVariableSRW(condition_of(condition), lock_of(mutex), INFINITE, 0);
}
void rwkvc_condition_broadcast(rwkvc_condition *condition) { WakeAllConditionVariable(condition_of(condition)); }

uint64_t rwkvc_process_id(void) { return 0; }

double rwkvc_seconds(void) {
    LARGE_INTEGER now, frequency;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&frequency);
    return (double)now.QuadPart / (double)frequency.QuadPart;
}

/* ------------------------------------------------------------------------------------ hardware */

/* Cores of the process's processor group that its affinity mask touches. */
uint32_t rwkvc_system_cores(void) {
    DWORD_PTR process = 0, machine = 0;
    DWORD bytes = 0;
    GetLogicalProcessorInformation(NULL, &bytes);
    SYSTEM_LOGICAL_PROCESSOR_INFORMATION *about = malloc(bytes ? bytes : 1);
    uint32_t cores = 0;
    if (about && GetProcessAffinityMask(GetCurrentProcess(), &process, &machine) &&
        GetLogicalProcessorInformation(about, &bytes))
        for (DWORD i = 0; i < bytes / sizeof *about; i++)
            cores += about[i].Relationship == RelationProcessorCore && (about[i].ProcessorMask & process) != 0;
    free(about);
    return cores;
}

uint32_t rwkvc_system_cpus(void) {
    DWORD_PTR process = 0, machine = 0;
    uint32_t cpus = 0;
    if (!GetProcessAffinityMask(GetCurrentProcess(), &process, &machine)) return 0;
    for (; process; process &= process - 1) cpus++;
    return cpus;
}

/* The numbers of <winnt.h>'s names, which older headers lack; an older system answers no. */
bool rwkvc_arm_dotprod(void) { return IsProcessorFeaturePresent(43); /* PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE */ }
bool rwkvc_arm_i8mm(void) { return IsProcessorFeaturePresent(66); /* PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE */ }

/* -------------------------------------------------------------------------------------- memory */

void *rwkvc_aligned_new(size_t size_bytes, size_t align) { return _aligned_malloc(size_bytes, align); }
void rwkvc_aligned_free(void *memory) { _aligned_free(memory); }

/* Large pages need a privilege that applications do not have. */
void rwkvc_wish_huge_pages(void *memory, size_t size_bytes) { (void)memory, (void)size_bytes; }

void rwkvc_wish_read_ahead(const void *bytes, uint64_t size_bytes) {
    WIN32_MEMORY_RANGE_ENTRY range = {(void *)(uintptr_t)bytes, (SIZE_T)size_bytes};
    PrefetchVirtualMemory(GetCurrentProcess(), 1, &range, 0);
}

int rwkvc_populate(const void *bytes, uint64_t size_bytes, char *reason, size_t reason_bytes) {
    (void)bytes, (void)size_bytes, (void)reason, (void)reason_bytes;
    return 0;
}

/* --------------------------------------------------------------------------------------- files */

enum { NAMES_TO_TRY = 100 };

static wchar_t *wide(const char *text) {
    int n = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, text, -1, NULL, 0);
    wchar_t *found = n > 0 ? malloc((size_t)n * sizeof *found) : NULL;
    if (found) MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, text, -1, found, n);
    return found;
}

/* The path in the form that may be longer than 260 characters; to be freed. NULL: it is not UTF-8, or no memory. */
static wchar_t *long_path(const char *path) {
    static const wchar_t LONG[] = L"\\\\?\\", LONG_SHARE[] = L"\\\\?\\UNC\\";
    wchar_t *given = wide(path);
    if (!given || wcslen(given) < 240 || wcsncmp(given, LONG, 4) == 0) return given;
    DWORD n = GetFullPathNameW(given, 0, NULL, NULL);
    wchar_t *whole = n ? malloc((n + 8) * sizeof *whole) : NULL, *found = NULL;
    if (whole && GetFullPathNameW(given, n, whole, NULL) < n) {
        bool share = wcsncmp(whole, L"\\\\", 2) == 0;
        const wchar_t *prefix = share ? LONG_SHARE : LONG;
        size_t length = wcslen(whole) + 1, before = wcslen(prefix), skip = share ? 2 : 0;
        memmove(whole + before, whole + skip, (length - skip) * sizeof *whole);
        memcpy(whole, prefix, before * sizeof *whole);
        found = whole;
    } else {
        free(whole);
    }
    free(given);
    return found;
}

static rwkvc_status say(DWORD error, char *reason, size_t reason_bytes) {
    wchar_t text[256];
    DWORD n =
        FormatMessageW(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS, NULL, error, 0, text, 255, NULL);
    while (n && (text[n - 1] == L'\n' || text[n - 1] == L'\r' || text[n - 1] == L'.')) n--;
    text[n] = L'\0';
    if (!n || !WideCharToMultiByte(CP_UTF8, 0, text, -1, reason, (int)reason_bytes, NULL, NULL))
        snprintf(reason, reason_bytes, "error %lu", error);
    bool missing = error == ERROR_FILE_NOT_FOUND || error == ERROR_PATH_NOT_FOUND || error == ERROR_INVALID_NAME;
    return missing ? RWKVC_E_NOT_FOUND : error == ERROR_NOT_ENOUGH_MEMORY ? RWKVC_E_NOMEM : RWKVC_E_IO;
}

static rwkvc_status not_utf8(char *reason, size_t reason_bytes) {
    snprintf(reason, reason_bytes, "the path is not UTF-8");
    return RWKVC_E_IO;
}

/* A plain file's handle and size. A directory can be opened with BACKUP_SEMANTICS only, and then says what it is. Others
 * may read, rename or delete the file meanwhile. */
static rwkvc_status open_plain(const char *path, HANDLE *file, uint64_t *size_bytes, char *reason,
                               size_t reason_bytes) {
    wchar_t *name = long_path(path);
    if (!name) return not_utf8(reason, reason_bytes);
    *file = CreateFileW(name, GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, NULL, OPEN_EXISTING,
                        FILE_FLAG_BACKUP_SEMANTICS, NULL);
    DWORD error = GetLastError();
    free(name);
    if (*file == INVALID_HANDLE_VALUE) return say(error, reason, reason_bytes);
    BY_HANDLE_FILE_INFORMATION about;
    rwkvc_status status = RWKVC_E_IO;
    if (GetFileType(*file) != FILE_TYPE_DISK)
        snprintf(reason, reason_bytes, "this is not a plain file");
    else if (!GetFileInformationByHandle(*file, &about))
        status = say(GetLastError(), reason, reason_bytes);
    else if (about.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY)
        snprintf(reason, reason_bytes, "this is a directory");
    else {
        *size_bytes = (uint64_t)about.nFileSizeHigh << 32 | about.nFileSizeLow;
        status = RWKVC_OK;
    }
    if (status) CloseHandle(*file);
    return status;
}

/* The view keeps the file open; its handles are not needed any more. */
rwkvc_status rwkvc_map_file(const char *path, rwkvc_mapping *mapping, char *reason, size_t reason_bytes) {
    HANDLE file, section = NULL;
    uint64_t size = 0;
    const void *bytes = NULL;
    *mapping = (rwkvc_mapping){0};
    rwkvc_status status = open_plain(path, &file, &size, reason, reason_bytes);
    if (status) return status;
    if (size == 0) {
        snprintf(reason, reason_bytes, "the file is empty");
        status = RWKVC_E_FORMAT;
    } else if (!(section = CreateFileMappingW(file, NULL, PAGE_READONLY, 0, 0, NULL)) ||
               !(bytes = MapViewOfFile(section, FILE_MAP_READ, 0, 0, 0)))
        status = say(GetLastError(), reason, reason_bytes);
    else
        *mapping = (rwkvc_mapping){bytes, size};
    if (section) CloseHandle(section);
    CloseHandle(file);
    return status;
}

void rwkvc_unmap_file(rwkvc_mapping *mapping) {
    if (mapping->bytes) UnmapViewOfFile(mapping->bytes);
    *mapping = (rwkvc_mapping){0};
}

rwkvc_status rwkvc_read_file(const char *path, uint64_t most, uint8_t **bytes, uint64_t *size_bytes, char *reason,
                             size_t reason_bytes) {
    HANDLE file;
    uint64_t size = 0;
    *bytes = NULL;
    *size_bytes = 0;
    rwkvc_status status = open_plain(path, &file, &size, reason, reason_bytes);
    if (status) return status;
    size = rwkvc_min(size, most);
    uint8_t *memory = rwkvc_alloc(size);
    if (!memory) status = say(ERROR_NOT_ENOUGH_MEMORY, reason, reason_bytes);
    while (!status && *size_bytes < size) {
        DWORD n = 0;
        if (!ReadFile(file, memory + *size_bytes, (DWORD)rwkvc_min(size - *size_bytes, 1 << 30), &n, NULL))
            status = say(GetLastError(), reason, reason_bytes);
        if (n == 0) break;
        *size_bytes += n;
    }
    CloseHandle(file);
    if (status)
        rwkvc_free(memory);
    else
        *bytes = memory;
    return status;
}

/* A new file beside path; its name goes to name[room]. */
static HANDLE open_beside(const wchar_t *path, wchar_t *name, size_t room) {
    size_t folder = wcslen(path);
    while (folder && !wcschr(L"/\\:", path[folder - 1])) folder--;
    for (unsigned i = 0; i < NAMES_TO_TRY; i++) {
        LARGE_INTEGER now;
        QueryPerformanceCounter(&now);
        uint32_t tag = ((uint32_t)now.QuadPart + i) * 2654435761u + (uint32_t)GetCurrentProcessId();
        swprintf(name, room, L"%.*ls.%ls.%08x.part", (int)folder, path, path + folder, (unsigned)tag);
        HANDLE file = CreateFileW(name, GENERIC_WRITE, 0, NULL, CREATE_NEW, FILE_ATTRIBUTE_NORMAL, NULL);
        if (file != INVALID_HANDLE_VALUE || GetLastError() != ERROR_FILE_EXISTS) return file;
    }
    return INVALID_HANDLE_VALUE;
}

static bool write_all(HANDLE file, const uint8_t *bytes, uint64_t size) {
    while (size) {
        DWORD n = 0;
        if (!WriteFile(file, bytes, (DWORD)rwkvc_min(size, 1 << 30), &n, NULL)) return false;
        bytes += n;
        size -= n;
    }
    return FlushFileBuffers(file);
}

static rwkvc_status write_to(const wchar_t *target, wchar_t *name, size_t room, const uint8_t *bytes, uint64_t size,
                             char *reason, size_t reason_bytes) {
    HANDLE file = open_beside(target, name, room);
    if (file == INVALID_HANDLE_VALUE) return say(GetLastError(), reason, reason_bytes);
    rwkvc_status status = write_all(file, bytes, size) ? RWKVC_OK : say(GetLastError(), reason, reason_bytes);
    CloseHandle(file);
    if (!status && !MoveFileExW(name, target, MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH))
        status = say(GetLastError(), reason, reason_bytes);
    if (status) DeleteFileW(name);
    return status;
}

rwkvc_status rwkvc_write_file(const char *path, const uint8_t *bytes, uint64_t size_bytes, char *reason,
                              size_t reason_bytes) {
    wchar_t *target = long_path(path);
    if (!target) return not_utf8(reason, reason_bytes);
    DWORD attributes = GetFileAttributesW(target);
    size_t room = wcslen(target) + sizeof "..01234567.part";
    wchar_t *name = malloc(room * sizeof *name);
    rwkvc_status status = RWKVC_E_IO;
    if (attributes != INVALID_FILE_ATTRIBUTES && attributes & FILE_ATTRIBUTE_DIRECTORY)
        snprintf(reason, reason_bytes, "this is a directory");
    else
        status = name ? write_to(target, name, room, bytes, size_bytes, reason, reason_bytes)
                      : say(ERROR_NOT_ENOUGH_MEMORY, reason, reason_bytes);
    free(name);
    free(target);
    return status ? RWKVC_E_IO : RWKVC_OK;
}
#else
typedef int rwkvc_no_windows; /* a unit of C must not be empty */
#endif
