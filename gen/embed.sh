#!/bin/sh
# Print a C file that holds each file named as a string: templates/cpu/ce.c is "cpu/ce".
set -e
echo '/* made by gen/embed.sh */'
echo '#include "templates.h"'
echo '#include <string.h>'
echo 'const Template templates[] = {'
for f; do
	name=${f#templates/}
	name=${name%.*}
	printf '\t{ "%s",\n' "$name"
	sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/^/\t"/' -e 's/$/\\n"/' "$f"
	printf '\t},\n'
done
echo '};'
echo "const int ntemplates = $#;"
cat <<'EOF'

const char *
template_find(const char *name)
{
	int i;

	for (i = 0; i < ntemplates; i++)
		if (strcmp(templates[i].name, name) == 0)
			return templates[i].text;
	return 0;
}
EOF
