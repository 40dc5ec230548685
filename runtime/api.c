/* Opens NVIDIA's libraries and fills the table of their functions.
 *
 * The driver's functions come from cuGetProcAddress, by name and version of
 * the interface: what dlsym finds under a plain name may be the interface of
 * twenty years ago.  The other two libraries are searched by their names in
 * the newest version that the driver can serve. */
#define _GNU_SOURCE
#include "api.h"
#include "../gen/base.h"

#include <dlfcn.h>
#include <glob.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>

enum { NeedMajor = 12, NeedMinor = 4 };

struct Api api;

static struct {
	Arena *mem;
	bool done[NApi];
	ApiInfo info[NApi];
	void *so[NApi];
	const char *broken[NApi];       /* what the loader said of a file that is there */
} lib;

typedef struct { const char *name, *soname[2], *advice; } Library;

static const Library libraries[NApi] = {
	{"the CUDA driver", {"libcuda.so.1"}, "install NVIDIA's driver, release 550 or later"},
	{"NVRTC", {"libnvrtc.so.13", "libnvrtc.so.12"},
	 "install the CUDA toolkit (its package cuda-nvrtc), or name its directory in HCGEN_CUDA_PATH"},
	{"cuBLASLt", {"libcublasLt.so.13", "libcublasLt.so.12"},
	 "install the CUDA toolkit (its package libcublas), or name its directory in HCGEN_CUDA_PATH"},
};

/* where toolkits are, when the loader does not know */
static const char *const places[] = {
	"/usr/local/cuda/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib64",
};

/* finding */

static void
set_path(ApiLibrary which)
{
	struct link_map *map = NULL;

	if (dlinfo(lib.so[which], RTLD_DI_LINKMAP, &map) == 0 && map && map->l_name[0])
		lib.info[which].path = arena_strdup(lib.mem, map->l_name);
}

/* libnvrtc opens its builtins by their name alone, so in a directory that the
 * loader does not know they must be open before. */
static void
open_builtins(const char *dir)
{
	Arena *mem = arena_new("builtins");
	glob_t g = {0};
	size_t i;

	if (glob(arena_printf(mem, "%s/libnvrtc-builtins.so.*", dir), 0, NULL, &g) == 0)
		for (i = 0; i < g.gl_pathc; i++)
			dlopen(g.gl_pathv[i], RTLD_NOW | RTLD_LOCAL);
	globfree(&g);
	arena_free(mem);
}

/* That a file is missing is the usual case, and says itself. */
static bool
open_file(ApiLibrary which, const char *path)
{
	const char *e;

	lib.so[which] = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (lib.so[which])
		return true;
	e = dlerror();
	if (e && !strstr(e, "cannot open shared object file"))
		lib.broken[which] = arena_strdup(lib.mem, e);
	return false;
}

static bool
open_in(ApiLibrary which, const char *dir, size_t len, const char *soname)
{
	const char *path = arena_printf(lib.mem, "%.*s/%s", (int)len, dir, soname);

	if (!open_file(which, path))
		return false;
	if (which == API_NVRTC)
		open_builtins(arena_strndup(lib.mem, dir, len));
	return true;
}

/* directories with colons between them */
static const char *
own_path(void)
{
	const char *s = getenv("HCGEN_CUDA_PATH");

	return s && *s ? s : NULL;
}

static bool
open_own(ApiLibrary which, const char *soname)
{
	const char *s = own_path();
	size_t n;

	for (; s && *s; s += n + (s[n] == ':')) {
		n = strcspn(s, ":");
		if (n && open_in(which, s, n, soname))
			return true;
	}
	return false;
}

/* Whoever names a toolkit means that one; the driver is the machine's, unless
 * another lies there too. */
static bool
open_soname(ApiLibrary which, const char *soname)
{
	size_t i;

	if (own_path() && (open_own(which, soname) || which != API_DRIVER))
		return lib.so[which] != NULL;
	open_file(which, soname);
	for (i = 0; which != API_DRIVER && !lib.so[which] &&
	            i < sizeof places / sizeof *places; i++)
		open_in(which, places[i], strlen(places[i]), soname);
	return lib.so[which] != NULL;
}

static void
not_found(ApiLibrary which, int n)
{
	const Library *l = &libraries[which];
	ApiInfo *i = &lib.info[which];

	if (lib.broken[which]) {
		i->error = arena_printf(lib.mem, "%s cannot be opened: %s", l->name,
		                        lib.broken[which]);
		return;
	}
	i->absent = true;
	i->error = arena_printf(lib.mem, "%s is not there: looked for %s%s%s%s; %s", l->name,
	                        l->soname[0], n > 1 ? " and " : "", n > 1 ? l->soname[1] : "",
	                        own_path() ? " in HCGEN_CUDA_PATH" : "", l->advice);
}

/* A library of release 13 asks for a driver of release 13. */
static bool
find(ApiLibrary which)
{
	const Library *l = &libraries[which];
	const ApiInfo *driver = &lib.info[API_DRIVER];
	bool old = lib.done[API_DRIVER] && driver->major && driver->major < 13;
	int i, n = l->soname[1] ? 2 : 1;

	for (i = 0; i < n; i++)
		if (open_soname(which, l->soname[old ? n - 1 - i : i]))
			break;
	if (i == n) {
		not_found(which, n);
		return false;
	}
	set_path(which);
	return true;
}

/* functions */

static const char *
path_of(ApiLibrary which)
{
	return lib.info[which].path ? lib.info[which].path : libraries[which].soname[0];
}

static bool
missing(ApiLibrary which, const char *name)
{
	lib.info[which].error = arena_printf(lib.mem, "%s has no %s: %s", path_of(which), name,
	                                     libraries[which].advice);
	return false;
}

/* to: the address of a pointer to a function, which C cannot cast to */
static bool
resolve(ApiLibrary which, const char *name, void *to)
{
	void *p = dlsym(lib.so[which], name);

	memcpy(to, &p, sizeof p);
	return p || missing(which, name);
}

typedef CUresult GetProcAddress(const char *name, void **pfn, int version, uint64_t flags,
                                CUdriverProcAddressQueryResult *status);

static bool
resolve_driver(GetProcAddress *get, const char *name, int version, void *to)
{
	CUdriverProcAddressQueryResult status = 0;
	void *p = NULL;
	CUresult e = get(name, &p, version, CU_GET_PROC_ADDRESS_LEGACY_STREAM, &status);

	if (e != CUDA_SUCCESS || !p) {
		if (status == CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT)
			name = arena_printf(lib.mem, "%s of CUDA %d.%d", name, version / 1000,
			                    version % 1000 / 10);
		return missing(API_DRIVER, name);
	}
	memcpy(to, &p, sizeof p);
	return true;
}

static bool
resolve_all(ApiLibrary which, GetProcAddress *get)
{
	bool good = true;

#define FN(library, name, version, result, parameters) \
	if (good && which == API_##library) \
		good = which == API_DRIVER ? resolve_driver(get, #name, version, &api.name) : \
		                             resolve(which, #name, &api.name);
#include "api.def"
	return good;
}

/* versions */

static bool
new_enough(ApiLibrary which)
{
	ApiInfo *i = &lib.info[which];

	if (i->major > NeedMajor || (i->major == NeedMajor && i->minor >= NeedMinor))
		return true;
	i->error = arena_printf(lib.mem, "%s (%s) is of CUDA %d.%d: %d.%d or later is needed; %s",
	                        libraries[which].name, path_of(which), i->major, i->minor,
	                        NeedMajor, NeedMinor, libraries[which].advice);
	return false;
}

const char *
api_cuda_error(CUresult e)
{
	static char text[256];
	const char *name = NULL, *what = NULL;

	if (api.cuGetErrorName && api.cuGetErrorName(e, &name) == CUDA_SUCCESS && name &&
	    api.cuGetErrorString(e, &what) == CUDA_SUCCESS && what)
		snprintf(text, sizeof text, "%s (%s)", name, what);
	else
		snprintf(text, sizeof text, "error %u", e);
	return text;
}

static const char *
init_error(CUresult e)
{
	switch (e) {
	case CUDA_ERROR_STUB_LIBRARY:
		return "there is no NVIDIA driver: the libcuda.so.1 found is the toolkit's stub";
	case CUDA_ERROR_NO_DEVICE:
		return "there is a CUDA driver but no GPU that it may use (CUDA_VISIBLE_DEVICES?)";
	case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
		return "the CUDA driver's library and kernel module are of two releases: "
		       "restart the machine, or install one of them anew";
	default:
		return arena_printf(lib.mem, "the CUDA driver does not start: cuInit: %s",
		                    api_cuda_error(e));
	}
}

static bool
open_driver(void)
{
	CUresult (*version)(int *), (*init)(unsigned);
	ApiInfo *i = &lib.info[API_DRIVER];
	GetProcAddress *get;
	CUresult e;
	int v = 0;

	if (!resolve(API_DRIVER, "cuDriverGetVersion", &version) ||
	    !resolve(API_DRIVER, "cuInit", &init))
		return false;
	/* the stub and a missing kernel module say version 0 and then, why */
	if (version(&v) == CUDA_SUCCESS && v > 0) {
		i->major = v / 1000;
		i->minor = v % 1000 / 10;
		if (!new_enough(API_DRIVER))
			return false;
	}
	e = init(0);
	if (e != CUDA_SUCCESS) {
		i->absent = e == CUDA_ERROR_STUB_LIBRARY || e == CUDA_ERROR_NO_DEVICE;
		i->error = init_error(e);
		return false;
	}
	return resolve(API_DRIVER, "cuGetProcAddress_v2", &get) && resolve_all(API_DRIVER, get);
}

static void
open_nvrtc(void)
{
	ApiInfo *i = &lib.info[API_NVRTC];

	if (!resolve_all(API_NVRTC, NULL))
		return;
	if (api.nvrtcVersion(&i->major, &i->minor) != NVRTC_SUCCESS)
		i->error = arena_printf(lib.mem, "%s: nvrtcVersion fails", path_of(API_NVRTC));
	else
		new_enough(API_NVRTC);
}

static void
open_cublaslt(void)
{
	ApiInfo *i = &lib.info[API_CUBLASLT];
	size_t v;

	if (!resolve_all(API_CUBLASLT, NULL))
		return;
	v = api.cublasLtGetVersion();
	i->major = (int)(v / 10000);
	i->minor = (int)(v / 100 % 100);
	new_enough(API_CUBLASLT);
}

const ApiInfo *
api_open(ApiLibrary which)
{
	if (lib.done[which])
		return &lib.info[which];
	if (!lib.mem)
		lib.mem = arena_new("api");
	if (find(which)) {
		if (which == API_DRIVER)
			open_driver();
		else if (which == API_NVRTC)
			open_nvrtc();
		else
			open_cublaslt();
	}
	lib.done[which] = true;
	return &lib.info[which];
}

const ApiInfo *
api_need(ApiLibrary which)
{
	const ApiInfo *i = api_open(which);

	if (i->error)
		die("%s", i->error);
	return i;
}
