/* SPDX-License-Identifier: MIT */
#include "cpu_model.h"

#include <errno.h>
#include <string.h>

#include "../base/bits.h"

#define OF(class) (1u << FEATURE_CLASS_##class)

static const struct {
    const char *name;
    unsigned must, may; /* classes */
} models[] = {
    [CPU_MODEL_HOST] = {"host", 0, ~OF(LIVE)},
    [CPU_MODEL_PORTABLE] = {"portable", OF(V1) | OF(V2) | OF(SYSTEM), OF(HINT)},
    [CPU_MODEL_X86_64] = {"x86-64", OF(V1), OF(SYSTEM) | OF(NEWER) | OF(HINT)},
    [CPU_MODEL_X86_64_V2] = {"x86-64-v2", OF(V1) | OF(V2), OF(SYSTEM) | OF(NEWER) | OF(HINT)},
    [CPU_MODEL_X86_64_V3] = {"x86-64-v3", OF(V1) | OF(V2) | OF(V3), OF(SYSTEM) | OF(NEWER) | OF(HINT)},
};

static int parse_model(struct cpu_wish *wish, const char *name, imgvm_error *err)
{
    for (size_t i = 0; i < ARRAY_LEN(models); i++) {
        if (!strcmp(models[i].name, name)) {
            wish->model = (enum cpu_model)i;
            return 0;
        }
    }
    error_set(err, EINVAL, "there is no processor model %.64s", name);
    return error_hint(err, "models: portable, x86-64, x86-64-v2, x86-64-v3, host");
}

static int parse_vendor(struct cpu_wish *wish, const char *vendor, imgvm_error *err)
{
    static const char *const names[] = {[CPU_VENDOR_AUTO] = "auto", [CPU_VENDOR_INTEL] = "intel", [CPU_VENDOR_AMD] = "amd"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        if (!strcmp(names[i], vendor && *vendor ? vendor : "auto")) {
            wish->vendor = (enum cpu_vendor)i;
            return 0;
        }
    error_set(err, EINVAL, "there is no processor vendor %.64s", vendor);
    return error_hint(err, "vendors: intel, amd, or auto");
}

int cpu_wish_parse(struct cpu_wish *wish, const char *model, const char *features, const char *vendor, imgvm_error *err)
{
    *wish = (struct cpu_wish){0};
    int result = model && *model ? parse_model(wish, model, err) : 0;
    if (result == 0)
        result = parse_vendor(wish, vendor, err);
    const char *word = features ? features : "";
    while (result == 0 && *(word += strspn(word, " "))) {
        size_t length = strcspn(word, " ");
        enum cpu_feature feature = *word == '+' || *word == '-' ? cpu_feature_named(word + 1, length - 1) : FEATURE_BASE;
        if (feature == FEATURE_BASE || cpu_feature_rows[feature].class == FEATURE_CLASS_LIVE) {
            error_set(err, EINVAL, "%.*s is not +name or -name of a processor feature", (int)MIN(length, 64u), word);
            result = error_hint(err, "names are those of /proc/cpuinfo, such as +aes or -avx2");
        } else {
            feature_set_add(*word == '+' ? &wish->plus : &wish->minus, feature);
        }
        word += length;
    }
    return result;
}

enum cpu_vendor cpu_wish_vendor(const struct cpu_wish *wish, enum cpu_vendor host)
{
    if (wish && wish->vendor != CPU_VENDOR_AUTO)
        return wish->vendor;
    return wish && wish->model != CPU_MODEL_HOST ? CPU_VENDOR_INTEL : host;
}

static int lacking(const struct cpu_wish *wish, enum cpu_feature feature, imgvm_error *err)
{
    const char *name = cpu_feature_rows[feature].name;
    if (feature_set_has(&wish->plus, feature))
        error_set(err, ENOTSUP, "this host or engine cannot give the processor feature %s", name);
    else
        error_set(err, ENOTSUP, "the processor model %s has %s, which this host or engine cannot give",
                  models[wish->model].name, name);
    return error_hint(err, "leave it out (machine.cpu.features), choose another machine.cpu.model or another engine");
}

/* What stands between a feature and its being usable: itself or something it stands on has been taken away. */
static enum cpu_feature taken_away(const struct cpu_wish *wish, enum cpu_feature feature)
{
    if (feature_set_has(&wish->minus, feature))
        return feature;
    for (size_t i = 0; i < cpu_feature_dependency_count; i++) {
        if (cpu_feature_dependencies[i].feature == feature) {
            enum cpu_feature parent = taken_away(wish, (enum cpu_feature)cpu_feature_dependencies[i].needs);
            if (parent != FEATURE_BASE)
                return parent;
        }
    }
    return FEATURE_BASE;
}

static int grant(const struct cpu_wish *wish, const struct feature_set *offered, struct feature_set *granted,
                 enum cpu_feature feature, imgvm_error *err)
{
    if (!feature_set_has(offered, feature))
        return lacking(wish, feature, err);
    feature_set_add(granted, feature);
    for (size_t i = 0; i < cpu_feature_dependency_count; i++) {
        if (cpu_feature_dependencies[i].feature == feature) {
            int result = grant(wish, offered, granted, (enum cpu_feature)cpu_feature_dependencies[i].needs, err);
            if (result < 0)
                return result;
        }
    }
    return 0;
}

int cpu_wish_grant(const struct cpu_wish *wish, const struct feature_set *offered, struct feature_set *granted,
                   imgvm_error *err)
{
    struct feature_set set = {0};
    for (unsigned feature = FEATURE_BASE + 1; feature < FEATURE_COUNT; feature++) {
        unsigned class = 1u << cpu_feature_rows[feature].class;
        enum cpu_feature gone = taken_away(wish, feature);
        int result = 0;
        if (feature_set_has(&wish->plus, feature)) {
            if (gone != FEATURE_BASE) {
                error_set(err, EINVAL, "the processor feature %s is asked for, and %s is taken away",
                          cpu_feature_rows[feature].name, cpu_feature_rows[gone].name);
                return error_hint(err, "decide for one of them in machine.cpu.features");
            }
            result = grant(wish, offered, &set, feature, err);
        } else if (gone == FEATURE_BASE && class & models[wish->model].must) {
            result = grant(wish, offered, &set, feature, err);
        } else if (gone == FEATURE_BASE && class & models[wish->model].may && feature_set_has(offered, feature)) {
            feature_set_add(&set, feature);
        }
        if (result < 0)
            return result;
    }
    /* what a model has for operating systems may stand on what it has not (XSAVEOPT) */
    for (size_t i = 0; i < cpu_feature_dependency_count; i++)
        if (!feature_set_has(&set, (enum cpu_feature)cpu_feature_dependencies[i].needs))
            feature_set_remove(&set, (enum cpu_feature)cpu_feature_dependencies[i].feature);
    *granted = set;
    return 0;
}
